"""What a fresh device is told before it first starts: `hob.toml` in the FAT partition that computers open.

The device reads it at every start (`appliance/setup`). mtools writes it without mounting anything, so that
the same works on a disk, on an image file and without root.
"""

import base64
import binascii
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import zoneinfo
from dataclasses import dataclass
from pathlib import Path

from builder.errors import CommandError, DriveError, FormatError, ToolMissingError
from builder.image import gpt
from builder.image.toolbox import Toolbox

LABEL = "HOB"
"""Of the partition, in the partition table."""

FILE = "hob.toml"

# No 0/O, 1/I/L, or U: they survive being read from a screen and typed on a phone.
CODE_ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"

TIMEOUT = 120.0
"""Seconds for one small file; slow sticks take several."""

KEY_KINDS = re.compile(
    r"ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com"
)


@dataclass(frozen=True)
class Settings:
    """Settings of the first start; "" leaves the device's own.

    Attributes:
        hostname: its name in the network, without `.local`.
        ssid, password, country: the Wi-Fi; no password for an open one. The country says which channels
            it may use.
        ssh_keys: lines of public keys; SSH stays off without one.
        locale: such as `de_DE.UTF-8`.
        timezone: such as `Europe/Berlin`.
        setup_code: what the first visitor types to become the owner.
    """

    hostname: str = ""
    ssid: str = ""
    password: str = ""
    country: str = ""
    ssh_keys: tuple[str, ...] = ()
    locale: str = ""
    timezone: str = ""
    setup_code: str = ""

    def __post_init__(self) -> None:
        """Refuse what the device would refuse.

        Raises:
            FormatError: a value cannot be; the message names the setting.
        """
        _match(
            "hostname",
            self.hostname,
            r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            "Small letters, digits and hyphens.",
        )
        _match(
            "locale", self.locale, r"C\.UTF-8|[a-z]{2,3}_[A-Z]{2}(\.UTF-8)?(@[a-z]+)?", "Such as de_DE.UTF-8."
        )
        _match("Wi-Fi country", self.country, r"[A-Z]{2}", "Two letters, such as DE.")
        _match(
            "set-up code",
            self.setup_code,
            rf"[{CODE_ALPHABET}]{{4}}(-[{CODE_ALPHABET}]{{4}}){{2,}}",
            "Such as K7WQ-3MZP-8HXE.",
        )
        if len(self.ssid.encode()) > 32:
            raise FormatError("the Wi-Fi's name has more than 32 bytes")
        if self.password and not self.ssid:
            raise FormatError("a Wi-Fi password without a Wi-Fi", hint="Add --wifi NAME.")
        if self.password and not re.fullmatch(r"[ -~]{8,63}|[0-9a-fA-F]{64}", self.password):
            raise FormatError("the Wi-Fi password has to have 8 to 63 characters, plain ASCII")
        known = zoneinfo.available_timezones()  # empty where the system has no list
        if self.timezone and known and self.timezone not in known:
            raise FormatError(f"time zone {self.timezone!r} is unknown", hint="Such as Europe/Berlin.")

    def toml(self) -> str:
        """The file's text. Contains the Wi-Fi password."""
        lines = ["# Read at every start. Change it on any computer, then start the device."]
        plain = ("hostname", "locale", "timezone", "setup_code")
        lines += [f"{key} = {_string(value)}" for key in plain if (value := getattr(self, key))]
        if self.ssh_keys:
            lines += ["ssh_keys = [", *(f"    {_string(key)}," for key in self.ssh_keys), "]"]
        if self.ssid:
            lines += ["", "[wifi]", f"ssid = {_string(self.ssid)}"]
            lines += [f"password = {_string(self.password)}"] if self.password else []
            lines += [f"country = {_string(self.country)}"] if self.country else []
        return "\n".join(lines) + "\n"


def new_setup_code() -> str:
    """A fresh set-up code such as `K7WQ-3MZP-8HXE`: 58 bits; the set-up Wi-Fi has it as its password."""
    return "-".join("".join(secrets.choice(CODE_ALPHABET) for _ in range(4)) for _ in range(3))


def ssh_keys(path: Path) -> tuple[str, ...]:
    """The public keys in a file such as `~/.ssh/id_ed25519.pub`, without comments and blank lines.

    Raises:
        FormatError: a line is no public key, or there is none.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if "PRIVATE KEY" in text:
        raise FormatError(f"{path} is a private key", hint=f"The public one is in {path}.pub.")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        kind, _, rest = line.strip().partition(" ")
        if not KEY_KINDS.fullmatch(kind) or not _key(kind, rest.partition(" ")[0]):
            raise FormatError(
                f"{path}, line {number}: no public SSH key", hint="Such as ~/.ssh/id_ed25519.pub."
            )
        found.append(line.strip())
    if not found:
        raise FormatError(f"{path} has no public SSH key")
    return tuple(found)


def require_mtools(toolbox: Toolbox | None = None) -> None:
    """Make sure that there is a program that writes into FAT file systems: this machine's, or the toolbox's.

    Raises:
        ToolMissingError: neither.
    """
    if shutil.which("mcopy") is None and toolbox is None:
        raise ToolMissingError(
            "mcopy is missing, which puts the first settings on the boot partition",
            hint="Install the package mtools; or flash with --plain, which writes the image alone.",
        )


def write(disk: Path, partition: gpt.Partition, settings: Settings, toolbox: Toolbox | None = None) -> None:
    """Put `hob.toml` into the FAT file system of `partition`, in place of any there, and read it back.

    `disk` is the whole disk or an image of one. The toolbox serves where this machine has no mtools.

    Raises:
        ToolMissingError: no mtools.
        DriveError: the partition has no FAT file system, or is full.
    """
    require_mtools(toolbox)
    text = settings.toml().encode()
    with tempfile.TemporaryDirectory() as folder:  # for the owner's eyes only: a password is in the file
        file, back = Path(folder, FILE), Path(folder, "back")
        file.write_bytes(text)
        _mcopy(disk, partition, toolbox, "-o", str(file), f"::{FILE}")
        _mcopy(disk, partition, toolbox, f"::{FILE}", str(back))
        if back.read_bytes() != text:
            raise DriveError(
                f"{disk}: {FILE} does not read back as it was written", hint="Try another medium."
            )


def _mcopy(disk: Path, partition: gpt.Partition, toolbox: Toolbox | None, *arguments: str) -> None:
    argv = ["mcopy", "-i", f"{disk}@@{partition.start}", *arguments]
    folder = Path(arguments[-1] if arguments[0].startswith("::") else arguments[-2]).parent
    # mtools compares a disk's geometry with what the file system says of it, and the two need not agree here.
    settings = {"MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C"}
    try:
        if shutil.which("mcopy") is None and toolbox is not None:
            toolbox.run(argv, write=[disk, folder], env=settings, timeout=TIMEOUT)
        else:
            subprocess.run(
                argv,
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT,
                check=True,
            )
    except subprocess.CalledProcessError as error:
        raise _unwritten(disk, error.stderr.decode(errors="replace")) from error
    except (CommandError, subprocess.TimeoutExpired) as error:
        raise _unwritten(disk, str(error)) from error


def _unwritten(disk: Path, told: str) -> DriveError:
    return DriveError(
        f"{disk}: {FILE} could not be written: {(told.strip().splitlines() or ['no reason given'])[-1]}"
    )


def _match(name: str, value: str, pattern: str, hint: str) -> None:
    if value and not re.fullmatch(pattern, value):
        raise FormatError(f"{name} {value!r} cannot be", hint=hint)


def _string(value: str) -> str:
    """A TOML basic string: JSON's, which escapes all control characters but DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(kind: str, data: str) -> bool:
    """Whether the base64 data names its own kind, as RFC 4253, section 6.6, has it."""
    try:
        blob = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return False
    return blob[4 : 4 + int.from_bytes(blob[:4])].decode(errors="replace") == kind
