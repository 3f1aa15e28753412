"""Small disk images for the tests: a partition table, data with holes, a block map, a manifest."""

import hashlib
import lzma
import random
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from builder.image import manifest

BLOCK = 4096
MIB = 2**20
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")


@dataclass(frozen=True)
class Part:
    """A partition to make: label, and first and last sector."""

    label: str
    first: int
    last: int


def table(sectors: int, parts: list[Part]) -> bytes:
    """A protective MBR and the first copy of a GPT: 34 sectors."""
    entries = b"".join(
        struct.pack(
            "<16s16sQQQ72s",
            ESP.bytes_le,
            UUID(int=number).bytes_le,
            part.first,
            part.last,
            0,
            part.label.encode("utf-16-le"),
        )
        for number, part in enumerate(parts, 1)
    ).ljust(128 * 128, b"\0")
    fields = (1, sectors - 1, 34, sectors - 34, UUID(int=99).bytes_le, 2, 128, 128, zlib.crc32(entries))
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    mbr = bytes(446) + bytes([0, 0, 2, 0, 0xEE, 255, 255, 255]) + struct.pack("<II", 1, sectors - 1)
    return mbr.ljust(510, b"\0") + b"\x55\xaa" + header.ljust(512, b"\0") + entries


def image(folder: Path, name: str = "hob-test-1.0", size: int = 8 * MIB, label: str = "HOB") -> Path:
    """A disk image with noise in its first two thirds, but for a hole, and nothing in the last."""
    noise = random.Random(7)
    data = bytearray(size)
    head = table(size // 512, [Part(label, 2048, size // 512 - 35)])
    data[: len(head)] = head
    data[MIB : 3 * MIB] = noise.randbytes(2 * MIB)
    data[4 * MIB : 5 * MIB + 100] = noise.randbytes(MIB + 100)
    path = folder / f"{name}.img"
    path.write_bytes(data)
    return path


def pack(path: Path) -> Path:
    """The image as `.img.xz`; the unpacked one goes away."""
    packed = path.with_name(f"{path.name}.xz")
    packed.write_bytes(lzma.compress(path.read_bytes(), preset=0))
    path.unlink()
    return packed


def block_map(path: Path) -> Path:
    """A block map beside an unpacked image: every block that is not all zeros, in the longest runs."""
    data = path.read_bytes()
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    used = [number for number, block in enumerate(blocks) if any(block)]
    runs: list[list[int]] = []
    for number in used:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    ranges = []
    for first, last in runs:
        digest = hashlib.sha256(data[first * BLOCK : (last + 1) * BLOCK]).hexdigest()
        where = f"{first}-{last}" if last > first else f"{first}"
        ranges.append(f'        <Range chksum="{digest}"> {where} </Range>')
    return seal(
        path.with_name(f"{path.name}.bmap"),
        f"""<?xml version="1.0" ?>
<bmap version="2.0">
    <ImageSize> {len(data)} </ImageSize>
    <BlockSize> {BLOCK} </BlockSize>
    <BlocksCount> {len(blocks)} </BlocksCount>
    <MappedBlocksCount> {len(used)} </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> {"0" * 64} </BmapFileChecksum>
    <BlockMap>
{chr(10).join(ranges)}
    </BlockMap>
</bmap>
""",
    )


def seal(path: Path, text: str) -> Path:
    """Write a block map with its own checksum, in place of the zeros in `text`."""
    path.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1))
    return path


def vouch(image: Path, unpacked: bytes) -> Path:
    """A manifest beside the files of an image: `hob-test-1.0.manifest.json`."""
    name = image.name.removesuffix(".xz").removesuffix(".img")
    files = [path for path in (image, image.with_name(f"{name}.img.bmap")) if path.exists()]
    path = image.with_name(f"{name}.manifest.json")
    manifest.write(
        manifest.Manifest(
            device="test",
            title="Test",
            version="1.0",
            compatible="hob-test",
            architecture="amd64",
            built="2026-01-01",
            lock="0" * 64,
            image=manifest.File(f"{name}.img", len(unpacked), hashlib.sha256(unpacked).hexdigest()),
            partitions=(),
            slots=(),
            files=tuple(
                manifest.File(each.name, each.stat().st_size, hashlib.sha256(each.read_bytes()).hexdigest())
                for each in files
            ),
        ),
        path,
    )
    return path
