"""The update of a device: one signed file with a root file system and a kernel, in RAUC's verity format.

The signature covers the manifest, and the manifest the root of a hash tree over everything else, so a device
reads no block that was not signed. Nothing is encrypted: there is nothing in it that is not in the image.

A bundle differs from one build to the next, though what it installs does not: RAUC salts the hash tree, and
an ECDSA signature is never twice the same.
"""

import os
import shutil
from pathlib import Path
from typing import Final

from builder.image.keys import Keys
from builder.image.rauc import checking_conf
from builder.image.toolbox import Toolbox

HOOK: Final = Path(__file__).with_name("bundle_hook")
"""What brings the kernel in; runs on the device, out of the bundle whose signature was checked."""

TIMEOUT: Final = 1800.0


def make_bundle(
    toolbox: Toolbox,
    out: Path,
    *,
    compatible: str,
    version: str,
    keys: Keys,
    root: Path,
    kernel: Path,
    epoch: int,
) -> Path:
    """Write the bundle `out` for devices that call themselves `compatible`.

    Args:
        root: the squashfs for root-a or root-b.
        kernel: the kernel image that serves both slots, `hob.efi`.
        epoch: time of the files in it, in seconds since 1970.

    Raises:
        BuildError: a tool failed.
    """
    with toolbox.scratch("bundle") as work:
        content = work / "content"
        content.mkdir()
        place(root, content / "root.img")
        place(kernel, content / "hob.efi")
        shutil.copyfile(HOOK, content / "hook")
        (content / "hook").chmod(0o755)
        (content / "manifest.raucm").write_text(manifest(compatible, version, epoch), encoding="utf-8")
        made, config = work / "made.raucb", work / "system.conf"
        # As the device will check it, so that a bundle that it would refuse is not made.
        config.write_text(checking_conf(compatible, keys.keyring), encoding="utf-8")
        toolbox.run(
            [
                *("rauc", "bundle", "--conf", config, "--cert", keys.certificate, "--key", keys.key),
                # What it holds is compressed already: packing it again would take minutes and save nothing.
                "--mksquashfs-args=-all-root -noI -noD -noF -noX -no-progress",
                *(content, made),
            ],
            read=[keys.folder],
            write=[work],
            env={"SOURCE_DATE_EPOCH": str(epoch)},
            timeout=TIMEOUT,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, out)
    return out


def manifest(compatible: str, version: str, epoch: int) -> str:
    """The text of manifest.raucm; `epoch` becomes its build."""
    sections = [
        f"[update]\ncompatible={compatible}\nversion={version}\nbuild={epoch}\ndescription=Hob {version}\n",
        "[bundle]\nformat=verity\n",
        "[hooks]\nfilename=hook\n",
        "[image.rootfs]\nfilename=root.img\nhooks=pre-install;post-install\n",
    ]
    return "\n".join(sections)


def place(source: Path, target: Path) -> None:
    """The same file at another place, without copying it where that goes."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
