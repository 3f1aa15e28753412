"""The partitions of a disk image, read from its first sectors.

Source: UEFI specification 2.10, section 5.3 (GUID partition table). Only the first copy of the table is read:
an image whose first copy is damaged is not worth writing to anything.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from builder.errors import FormatError

SECTOR = 512
MAX_ENTRIES = 1024  # the specification asks for at least 128; more than this is a damaged count

_HEADER = struct.Struct("<8s4xII4xQQQQ16xQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True)
class Partition:
    """A partition.

    Attributes:
        label: its name in the table.
        uuid: what identifies it, lower case: Linux's PARTUUID.
        type: what it is for, lower case.
        start: where it lies, in bytes from the start of the disk.
        size: bytes.
    """

    label: str
    uuid: str
    type: str
    start: int
    size: int


@dataclass(frozen=True)
class Table:
    """A partition table.

    Attributes:
        disk: bytes of the disk that the table was made for.
        partitions: in the order of the table.
    """

    disk: int
    partitions: tuple[Partition, ...]

    def find(self, label: str) -> Partition | None:
        """The first partition with this label."""
        return next((each for each in self.partitions if each.label == label), None)


def read(head: bytes) -> Table | None:
    """The table in the first bytes of a disk with sectors of 512 bytes; None where there is no table.

    Raises:
        FormatError: there is one, but a checksum is wrong or it does not fit into `head`.
    """
    if head[SECTOR : SECTOR + 8] != b"EFI PART":
        return None
    if len(head) < SECTOR + _HEADER.size:
        raise FormatError("the partition table is cut off")
    _, length, checksum, _, backup, _, _, entries, count, width, entries_checksum = _HEADER.unpack_from(
        head, SECTOR
    )
    if not _HEADER.size <= length <= SECTOR or width < _ENTRY.size or count > MAX_ENTRIES:
        raise FormatError("the partition table's header has impossible sizes")
    header = bytearray(head[SECTOR : SECTOR + length])
    header[16:20] = bytes(4)  # the checksum is taken with itself as zero
    table = head[entries * SECTOR : entries * SECTOR + count * width]
    if len(table) != count * width:
        raise FormatError("the partition table is cut off")
    if zlib.crc32(header) != checksum or zlib.crc32(table) != entries_checksum:
        raise FormatError("the partition table's checksum is wrong")
    return Table((backup + 1) * SECTOR, tuple(_partitions(table, width)))


def _partitions(table: bytes, width: int) -> Iterator[Partition]:
    """The entries that are in use."""
    for offset in range(0, len(table), width):
        kind, identity, first, last, _, name = _ENTRY.unpack_from(table, offset)
        if kind != bytes(16):
            label = name.decode("utf-16-le", errors="replace").partition("\0")[0]
            yield Partition(
                label,
                str(UUID(bytes_le=identity)),
                str(UUID(bytes_le=kind)),
                first * SECTOR,
                (last - first + 1) * SECTOR,
            )
