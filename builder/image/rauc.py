"""RAUC's configuration on a device: which slots there are, who may sign, which versions are taken.

Keys and sections: rauc.readthedocs.io/en/latest/reference.html (release 1.13, Debian 13).
"""

import re
import shutil
from pathlib import Path
from typing import Final

from builder.errors import RecipeError

SLOTS: Final = ("a", "b")
"""Their names for the boot loader; RAUC counts them 0 and 1. The partitions are root-a and root-b."""

BACKEND: Final = "/usr/lib/hob/slots"
KEYRING: Final = Path("/etc/rauc/keyring.pem")


def slot(index: int) -> str:
    """The section of a slot in system.conf. Kernels are files that a bundle's hook brings."""
    name = SLOTS[index]
    return f"[slot.rootfs.{index}]\ndevice=/dev/disk/by-partlabel/root-{name}\ntype=raw\nbootname={name}\n"


def system_conf(compatible: str, version: str) -> str:
    """The text of /etc/rauc/system.conf.

    Bundles older than `version` are refused by RAUC itself, whoever asks. Certificates are held against the
    signature's own time, because a device without network or clock battery knows no other.

    Raises:
        RecipeError: compatible or version cannot be written there.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", compatible):
        raise RecipeError(
            f"compatible {compatible!r} has other characters than letters, digits, space and ._-"
        )
    parts = [
        f"""\
[system]
compatible={compatible}
bootloader=custom
bundle-formats=verity
data-directory=/var/lib/hob-system/rauc
mountprefix=/run/rauc
min-bundle-version={release(version)}

[handlers]
bootloader-custom-backend={BACKEND}
""",
        trust(KEYRING),
        *(slot(index) for index in range(len(SLOTS))),
    ]
    return "\n".join(parts)


def checking_conf(compatible: str, keyring: Path) -> str:
    """A configuration to check a bundle with where it was made, as strictly as the device will."""
    return f"[system]\ncompatible={compatible}\nbootloader=noop\n\n{trust(keyring)}"


def trust(keyring: Path) -> str:
    """Whose signatures count, and for what."""
    return f"[keyring]\npath={keyring}\ncheck-purpose=codesign\nuse-bundle-signing-time=true\n"


def release(version: str) -> str:
    """The three numbers of a version, which is all that RAUC compares: "0.2.0" of "0.2.0rc1".

    Raises:
        RecipeError: it does not begin with numbers.
    """
    found = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    if found is None:
        raise RecipeError(f"version {version!r} does not begin with numbers", hint="Such as --version 0.2.0")
    return ".".join(part or "0" for part in found.groups())


def configure(tree: Path, *, compatible: str, version: str, keyring: Path | None) -> None:
    """Write RAUC's files into the tree of a system. Without a keyring the system takes no updates at all."""
    folder = tree / "etc/rauc"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "system.conf").write_text(system_conf(compatible, version), encoding="utf-8")
    if keyring is not None:
        shutil.copyfile(keyring, folder / "keyring.pem")
