"""Whether an image is what its manifest says: every file, every partition, every block of the block map.

What is checked, in this order, so that the first complaint is the one that explains the others: the signature
of the manifest, the files beside it, the block map by itself, the image's size, partitions, slots and bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from builder.errors import FormatError
from builder.image import bmap, gpt, keys, manifest
from builder.image.cache import file_digest
from builder.image.checksums import Span, Sums, measure
from builder.image.manifest import Manifest

SUFFIX = ".manifest.json"
SIGNATURE = ".p7s"
AGAIN = "Fetch it again, or build it anew."

Tell = Callable[[str, str, float | None], None]
"""Progress: stage, what is being done, share of it that is done (None: not known)."""


@dataclass(frozen=True)
class Verified:
    """A release that is what its manifest says.

    Attributes:
        path: the manifest's.
        manifest: what it says.
        signed: when it was signed, in Unix time, by somebody the keyring trusts; None: not checked.
        signature: whether there is a signature.
        blocks: whether there was a block map, and it is right.
    """

    path: Path
    manifest: Manifest
    signed: int | None
    signature: bool
    blocks: bool


def find(path: Path) -> list[Path]:
    """The manifests that speak of a file, or all in a folder.

    Raises:
        FormatError: there is none.
    """
    if path.is_dir():
        if found := sorted(path.glob(f"*{SUFFIX}")):
            return found
        raise FormatError(
            f"{path} has no manifest (*{SUFFIX})", hint="Name the folder that an image was built into."
        )
    if path.name.endswith(SUFFIX):
        return [path]
    for candidate in sorted(path.parent.glob(f"*{SUFFIX}")):
        described = manifest.read(candidate)
        if path.name == described.image.name or described.file(path.name):
            return [candidate]
    raise FormatError(
        f"no manifest beside {path} speaks of it, so there is nothing to compare it with",
        hint=f"Put the file *{SUFFIX} of its release beside it.",
    )


def verify(path: Path, *, keyring: Path | None, tell: Tell) -> Verified:
    """Check a release by its manifest.

    Args:
        path: the manifest's.
        keyring: certificates of those who may sign; None: the signature is not looked at.

    Raises:
        FormatError: something is missing, damaged or other than the manifest says. The message names it.
    """
    described = manifest.read(path)
    signed = None
    if keyring is not None:
        tell("signature", path.name, None)
        signed = signed_at(path, keyring)
    image = image_path(path.parent, described)
    # An image that was unpacked may lie there in place of the packed one.
    files = [file for file in described.files if file.name != f"{image.name}.xz"]
    total = sum(file.size for file in files)
    done = 0
    for file in files:
        tell("files", file.name, done / total if total else None)
        check_file(path.parent, file)
        done += file.size
    map_path = path.with_name(f"{described.image.name}.bmap")
    blocks = bmap.read(map_path) if map_path.exists() else None
    if blocks is not None and blocks.size != described.image.size:
        raise FormatError(
            f"{map_path.name} is for an image of {blocks.size} bytes, not one of {described.image.size}",
            hint=AGAIN,
        )
    parts = [part for part in described.partitions if part.content]
    spans = [Span(part.start, part.start + part.content) for part in parts]
    runs = blocks.runs if blocks else ()
    spans += [Span(run.start, run.end, blocks.hash) for run in runs if blocks]
    sums = measure(
        image, spans, lambda read: tell("image", image.name, min(1.0, read / described.image.size))
    )
    for fault in faults(described, sums):
        raise FormatError(f"{image.name}: {fault}", hint=AGAIN)
    for run, found in zip(runs, sums.spans[len(parts) :], strict=True):
        if found != run.checksum:
            raise FormatError(
                f"{map_path.name} does not belong to {image.name}: bytes {run.start} to {run.end} differ",
                hint=AGAIN,
            )
    has_signature = path.with_name(path.name + SIGNATURE).exists()
    return Verified(path, described, signed, has_signature, blocks is not None)


def signed_at(path: Path, keyring: Path) -> int:
    """When a manifest was signed by somebody the keyring trusts, in Unix time.

    Raises:
        FormatError: it was not, or has changed since.
    """
    signature = path.with_name(path.name + SIGNATURE)
    if not signature.exists():
        raise FormatError(f"{path.name} is not signed: there is no {signature.name}", hint=AGAIN)
    return keys.verify(path, signature, keyring)


def check_file(folder: Path, file: manifest.File) -> None:
    """Compare a file with its entry.

    Raises:
        FormatError: missing, of another size, or of other content.
    """
    path = folder / file.name
    if not path.is_file():
        raise FormatError(f"{file.name} is missing in {folder}", hint=AGAIN)
    size = path.stat().st_size
    if size != file.size:
        how = "cut off" if size < file.size else "too long"
        raise FormatError(f"{file.name} is {how}: {size} bytes instead of {file.size}", hint=AGAIN)
    if file_digest(path) != file.sha256:
        raise FormatError(f"{file.name} is damaged: its content is not what the manifest says", hint=AGAIN)


def image_path(folder: Path, described: Manifest) -> Path:
    """Where the image lies, packed or not.

    Raises:
        FormatError: it is not there.
    """
    for name in (f"{described.image.name}.xz", described.image.name):
        if (folder / name).is_file():
            return folder / name
    raise FormatError(f"{described.image.name}.xz is missing in {folder}", hint=AGAIN)


def faults(described: Manifest, sums: Sums) -> Iterator[str]:
    """In what an image differs from its manifest, the most telling first."""
    if sums.size != described.image.size:
        yield f"has {sums.size} bytes unpacked, and the manifest says {described.image.size}"
    table = gpt.read(sums.head)
    if table is None:
        yield "has no partition table"
        return
    expected = {part.label: part for part in described.partitions}
    if list(expected) != [part.label for part in table.partitions]:
        there = ", ".join(part.label for part in table.partitions)
        yield f"has the partitions {there}, and the manifest says {', '.join(expected)}"
    for part in table.partitions:
        said = expected.get(part.label)
        for what, found, wanted in _compared(part, said) if said else ():
            if found != wanted:
                yield f"partition {part.label} has {what} {found}, and the manifest says {wanted}"
    filled = [part for part in described.partitions if part.content]
    for said, digest in zip(filled, sums.spans[: len(filled)], strict=True):
        if digest != said.sha256:
            slots = [
                slot.name
                for slot in described.slots
                if said.label in {slot.root, slot.kernel.partition(":")[0]}
            ]
            of = f" (slot {slots[0]})" if len(slots) == 1 else ""
            yield f"partition {said.label}{of} does not hold what the manifest says"
    if sums.sha256 != described.image.sha256:
        yield "differs from its manifest outside of what the partitions hold"


def _compared(part: gpt.Partition, said: manifest.Partition) -> Iterator[tuple[str, object, object]]:
    """Property, what the table has, what the manifest has."""
    yield "its start at byte", part.start, said.start
    yield "a size of", part.size, said.size
    yield "the id", part.uuid, said.uuid
    yield "the type", part.type, said.type
