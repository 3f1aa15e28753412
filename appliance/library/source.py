"""What a person may name as a model's source, and what they mean by it. Pure: nothing is looked up."""

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

from appliance.errors import InvalidRequestError

HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
KINDS = (
    "Give a Hugging Face id (owner/name), the address of a .gguf file, a file or folder,"
    " or a model on another Hob (name@hob-2.local)."
)


@dataclass(frozen=True)
class Hub:
    """A repository on Hugging Face; `revision` "" means its main branch, `choice` picks among GGUF files."""

    repository: str
    revision: str = ""
    choice: str = ""


@dataclass(frozen=True)
class Web:
    """One file at an address."""

    url: str


@dataclass(frozen=True)
class Peer:
    """A model on another Hob: its name there, and a host as "hob-2.local", "name:port" or a URL."""

    model: str
    host: str


@dataclass(frozen=True)
class Local:
    """A file or folder on this machine."""

    path: Path


Source = Hub | Web | Peer | Local


def parse(text: str) -> Source:
    """What a person means by `text`. Whatever exists as a file or folder is that.

    Raises:
        InvalidRequestError: nothing that a model comes from.
    """
    text = text.strip()
    if not text or "\0" in text:
        raise InvalidRequestError("the source is empty", param="source", hint=KINDS)
    if text.startswith(("http://", "https://")):
        return _address(text)
    # These two answer whatever they are given; pathlib's own raise for odd names.
    path = os.path.expanduser(text)
    if not text.startswith("hf:") and os.path.exists(path):
        return Local(Path(path))
    name, at, host = text.rpartition("@")
    if at and is_host(host):
        return Peer(name, host)
    if text.startswith("hf:") or REPOSITORY.fullmatch(re.split("[@:]", text)[0]):
        return _hub(text.removeprefix("hf:"))
    raise InvalidRequestError(f"{text[:200]!r} is no file or folder here", param="source", hint=KINDS)


def is_host(text: str) -> bool:
    """Whether what follows the last @ names a machine and not a revision."""
    if text.startswith(("http://", "https://")) or text == "localhost":
        return True
    name, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        name = text
    elif name:
        return re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", name) is not None
    if name.lower().endswith(".local"):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _hub(text: str) -> Hub:
    """owner/name, owner/name@revision, owner/name:Q4_0, owner/name@revision:Q4_0."""
    rest, _, choice = text.partition(":")
    repository, _, revision = rest.partition("@")
    if not REPOSITORY.fullmatch(repository) or not re.fullmatch(r"[\w./-]{0,200}", revision):
        raise InvalidRequestError(
            f"{text[:200]!r} is not a Hugging Face id",
            param="source",
            hint="Ids look like owner/name, owner/name@revision or, for GGUF files, owner/name:Q4_0.",
        )
    return Hub(repository, revision, choice)


def _address(url: str) -> Source:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise InvalidRequestError(f"{url[:200]!r} is no address", param="source", hint=KINDS) from error
    path = [unquote(part) for part in parts.path.split("/") if part]
    if host in HUB_HOSTS and len(path) >= 2 and (len(path) == 2 or path[2] == "tree"):
        return _hub("/".join(path[:2]) + (f"@{'/'.join(path[3:])}" if len(path) > 3 else ""))
    if host in HUB_HOSTS and len(path) > 3 and path[2] == "blob":  # the page that shows a file
        url = url.replace("/blob/", "/resolve/", 1)
    if parts.username or parts.password:
        raise InvalidRequestError(
            "the address holds a password", param="source", hint="Give an address that works without one."
        )
    if not host or not path:
        raise InvalidRequestError(f"{url[:200]!r} names no file", param="source", hint=KINDS)
    if parts.scheme == "http" and not _near(host):
        raise InvalidRequestError(
            f"{url[:200]} is not encrypted",
            param="source",
            hint="Anybody on the way could change the model; use https:// or fetch the file yourself.",
        )
    return Web(url)


def _near(host: str) -> bool:
    """Whether a host is on this machine or this network, where http is usual."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(".local") or "." not in host


# What publishers append to a name and what says nothing about the model once it is here.
_PACKING = re.compile(r"[-_.](mlc|gguf|onnx|hf|i?q\d\w*|f16|f32|bf16|fp16|fp32)$", re.I)
QUANTISED = re.compile(r"q\d(bf|f)\d+(_\d)?", re.I)


def model_name(title: str, quantisation: str, *, converted: bool) -> str:
    """A model's name from what its source is called: without its packing, with the format it has here."""
    name = title.rstrip("/").rpartition("/")[2]
    name = re.sub(r"\.(gguf|onnx|bin|safetensors|hobmodel)$", "", name, flags=re.I)
    while (shorter := _PACKING.sub("", name)) and shorter != name:
        if not converted and QUANTISED.fullmatch(name[len(shorter) + 1 :]):
            break
        name = shorter
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"
    if quantisation and not name.lower().endswith(quantisation.lower()):
        name = f"{name}-{quantisation}"
    return name[:90]
