"""What the owner says about other servers. The only place that addresses come from."""

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z0-9]([a-z0-9._-]{0,62})$"


def base_url(text: str) -> str:
    """The address of an API as it is used: without a slash at its end, with /v1 where it had no path.

    Raises:
        ValueError: not a plain address of http or https.
    """
    parts = urlsplit(text.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it must begin with http:// or https:// and a host name")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a password does not belong in an address; put the key into a file, key_file")
    if parts.query or parts.fragment:
        raise ValueError("it may have a path, but nothing after ? or #")
    if parts.port == 0:
        raise ValueError("port 0 cannot be reached")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", ""))


def _no_version(name: str) -> str:
    """Refuse names that could be a version of a model on this machine, which follows an @ as well."""
    if re.fullmatch("[0-9a-f]+", name):
        raise ValueError("it reads like a version; it needs a letter after f, a dot or a hyphen")
    return name


class Upstream(BaseModel):
    """A server, or several that stand in for each other. Its models are called MODEL@NAME."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_no_version)] = Field(
        pattern=NAME, description="What follows the @ in its models' names; default: host of the first URL."
    )
    urls: tuple[Annotated[str, AfterValidator(base_url)], ...] = Field(
        min_length=1,
        description="Addresses of its API, the preferred one first; /v1 is added where there is no path.",
    )
    key_file: Path | None = Field(
        None, description="File with the API key; only its owner, or owner and group, may read it."
    )
    ca_file: Path | None = Field(
        None,
        description="Certificates (PEM) to trust instead of the system's, for one that you made yourself.",
    )
    connect_timeout: float = Field(3, gt=0, le=60, description="Seconds until a connection must stand.")
    first_token_timeout: float = Field(
        120, gt=0, le=3600, description="Seconds until the first token; then the next URL is tried."
    )
    token_timeout: float = Field(60, gt=0, le=3600, description="Seconds between two tokens.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """An address alone, one `url` for `urls`, and a name from the first address."""
        if isinstance(value, str):
            value = {"urls": [value]}
        if not isinstance(value, dict):
            return value
        fields = dict(value)
        if "url" in fields and "urls" not in fields:
            fields["urls"] = [fields.pop("url")]
        urls = fields.get("urls")
        if "name" not in fields and isinstance(urls, list | tuple) and urls and isinstance(urls[0], str):
            host = urlsplit(urls[0].strip()).hostname or ""
            fields["name"] = host.replace(":", "-").strip("-")
        return fields


def distinct(upstreams: tuple[Upstream, ...]) -> tuple[Upstream, ...]:
    """Refuse two of the same name."""
    names = [upstream.name for upstream in upstreams]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two of them are called {name!r}; give each a name of its own")
    return upstreams
