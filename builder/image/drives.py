"""The disks of this machine, and which of them may be overwritten.

What the system says comes from `lsblk` (util-linux 2.37 or newer); what follows from it is decided here,
purely, so that it is tested on recorded machines.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec

from builder.errors import FormatError, ToolMissingError

EXPECTED = 260 * 10**9
"""Bytes up to which a disk looks like one bought for the purpose: 256 GB, as makers round it up."""

SYSTEM = {"/", "/boot", "/boot/efi", "/boot/firmware", "/efi", "/home", "/usr", "/var", "[SWAP]"}
"""Where a mounted partition says that the running system needs the disk."""

MEMBERS = {"LVM2_member", "linux_raid_member", "crypto_LUKS", "zfs_member", "bcache"}
"""Content that belongs to something larger, which may not be running at the moment."""

OUTSIDE = {"usb", "mmc", "sdio"}
"""Ways to connect a disk that a person plugs in."""

_COLUMNS = "NAME,PATH,TYPE,SIZE,RO,RM,HOTPLUG,TRAN,MODEL,MOUNTPOINTS,FSTYPE,PKNAME,LOG-SEC"


class Drive(msgspec.Struct, frozen=True):
    """A block device as `lsblk` describes it, with what lies on it.

    Attributes:
        size: bytes.
        log_sec: bytes of a sector as the device addresses them.
        children: partitions, and what was made of them: encrypted, logical and RAID volumes.
    """

    path: str
    type: str
    size: int
    ro: bool = False
    rm: bool = False
    hotplug: bool = False
    tran: str | None = None
    model: str | None = None
    mountpoints: tuple[str | None, ...] = ()
    fstype: str | None = None
    pkname: str | None = None
    log_sec: int = msgspec.field(default=512, name="log-sec")
    children: tuple["Drive", ...] = ()

    @property
    def external(self) -> bool:
        """Whether a person can plug it in and take it out, as far as the kernel knows."""
        return (
            self.rm or self.hotplug or self.tran in OUTSIDE or "/mmcblk" in self.path or self.type == "loop"
        )

    def tree(self) -> tuple["Drive", ...]:
        """The device and everything on it."""
        return (self, *(below for child in self.children for below in child.tree()))

    def describe(self) -> str:
        """One line for a person."""
        how = self.tran or ("card" if "/mmcblk" in self.path else self.type)
        return f"{self.path}  {human(self.size)}  {how}  {(self.model or '').strip()}".rstrip()


@dataclass(frozen=True)
class Objection:
    """Why a disk is not overwritten.

    Attributes:
        hint: what the person can do.
        final: no flag overrides it.
    """

    text: str
    hint: str
    final: bool = True


def read(text: bytes) -> tuple[Drive, ...]:
    """Drives out of `lsblk --json`.

    Raises:
        FormatError: not that.
    """
    try:
        return msgspec.json.decode(text, type=_Listing).blockdevices
    except msgspec.DecodeError as error:
        raise FormatError(
            f"lsblk did not say what was expected: {error}", hint="It takes util-linux 2.37 or newer."
        ) from error


def present(device: Path | None = None) -> tuple[Drive, ...]:
    """The drives of this machine, or the one that `device` is.

    Raises:
        ToolMissingError: no `lsblk`: not Linux.
        FormatError: `lsblk` failed, for example because `device` is not a block device.
    """
    lsblk = shutil.which("lsblk")
    if lsblk is None:
        raise ToolMissingError(
            "lsblk is missing, which tells disks apart",
            hint="Write the image with Raspberry Pi Imager or balenaEtcher instead.",
        )
    named = [str(device)] if device else []
    done = subprocess.run(
        [lsblk, "--json", "--bytes", "--output", _COLUMNS, *named],
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise FormatError(f"lsblk failed: {done.stderr.decode(errors='replace').strip() or done.returncode}")
    return read(done.stdout)


def objection(drive: Drive, needed: int = 0) -> Objection | None:
    """Why `drive` is not overwritten with an image of `needed` bytes; None if nothing speaks against it."""
    if drive.type == "part":
        return Objection(
            f"{drive.path} is a partition, not a disk", f"Name the whole disk: /dev/{drive.pkname or '…'}."
        )
    if drive.type not in ("disk", "loop"):
        return Objection(
            f"{drive.path} is of type {drive.type}, not a disk", "Name a card, a stick or an SSD."
        )
    if drive.ro:
        return Objection(f"{drive.path} is read-only", "A card may have a slider for that.")
    return _in_use(drive) or _unfit(drive, needed) or _unexpected(drive)


def candidates(drives: tuple[Drive, ...]) -> tuple[tuple[Drive, Objection | None], ...]:
    """The disks a person may mean, and what has to be confirmed; those that need nothing come first."""
    found = []
    for drive in drives:
        against = objection(drive)
        # zram is memory, though lsblk calls it a disk.
        if (
            drive.size
            and drive.type == "disk"
            and "/zram" not in drive.path
            and not (against and against.final)
        ):
            found.append((drive, against))
    return tuple(sorted(found, key=lambda pair: (pair[1] is not None, pair[0].path)))


def human(size: int) -> str:
    """A size the way it is printed on the packaging."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"


class _Listing(msgspec.Struct):
    blockdevices: tuple[Drive, ...]


def _in_use(drive: Drive) -> Objection | None:
    """Something of the running system that lies on the disk."""
    mounted = [(part, where) for part in drive.tree() for where in part.mountpoints if where]
    for _, where in mounted:
        if where in SYSTEM:
            what = "swaps to" if where == "[SWAP]" else f"has its {where} on"
            return Objection(f"this system {what} {drive.path}", "Name another disk.")
    for part, where in mounted:
        return Objection(f"{part.path} is mounted at {where}", f"Unmount it first: umount {part.path}")
    for part in drive.tree()[1:]:
        if part.type != "part":
            return Objection(
                f"{drive.path} is in use: {part.path} ({part.type}) lies on it",
                "Stop that first, or name another disk.",
            )
    return None


def _unfit(drive: Drive, needed: int) -> Objection | None:
    """A disk that the image could not be used from."""
    if drive.size < needed:
        return Objection(
            f"{drive.path} has {human(drive.size)}, the image needs {human(needed)}",
            "Take a larger disk." if drive.size else "Is there a card in the reader?",
        )
    if drive.log_sec != 512:
        return Objection(
            f"{drive.path} has sectors of {drive.log_sec} bytes, the image is made for 512",
            "Many NVMe disks can be switched: nvme format --lbaf.",
        )
    return None


def _unexpected(drive: Drive) -> Objection | None:
    """A disk that may well be meant, but that nobody should lose to a slip of the keyboard."""
    confirm = "Say --yes if it is the right one."
    for part in drive.tree():
        if part.fstype in MEMBERS:
            return Objection(
                f"{part.path} is a {part.fstype}, part of something larger", confirm, final=False
            )
    if drive.size > EXPECTED:
        return Objection(f"{drive.path} is larger than expected: {human(drive.size)}", confirm, final=False)
    if not drive.external:
        return Objection(
            f"{drive.path} is built into this machine ({drive.describe()})", confirm, final=False
        )
    return None
