"""What lies beside an image: manifest, bill of materials, entry for Raspberry Pi Imager, signature."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from builder.errors import FormatError
from builder.image import gpt, imager, keys, manifest, sbom, verify
from builder.image.cache import file_digest
from builder.image.checksums import Span, measure
from builder.image.disk import Part
from builder.image.recipe import Recipe

Tell = Callable[[str, str, float | None], None]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the image holds, from the stages that put it there.

    Attributes:
        version: of Hob.
        epoch: the time of everything in it, in seconds since 1970.
        lock: SHA-256 of the package lock.
        slots: where systems can be.
        debian, python, models, libraries: see `builder.image.inventory`.
    """

    version: str
    epoch: int
    lock: str
    slots: Sequence[manifest.Slot]
    debian: Sequence[manifest.Package] = ()
    python: Sequence[manifest.Package] = ()
    models: Sequence[manifest.Model] = ()
    libraries: Sequence[manifest.File] = ()


ENDINGS = (".cdx.json", ".manifest.json", ".manifest.json.p7s", ".rpi-imager-manifest")
"""Of the files that `write` makes."""

SLOTS = (
    manifest.Slot("a", "root-a", "HOB:EFI/Linux/hob-a.efi", True),
    manifest.Slot("b", "root-b", "HOB:EFI/Linux/hob-b.efi", False),
)


def write(
    folder: Path,
    *,
    recipe: Recipe,
    contents: Contents,
    image: Path,
    parts: Sequence[Part],
    files: Sequence[Path],
    signing: keys.Keys | None = None,
    tell: Tell = lambda _stage, _text, _share: None,
) -> Path:
    """Complete a release whose image, block map and bundle lie in `folder`; returns the manifest's path.

    Writes `NAME.cdx.json`, `NAME.manifest.json` (with `.p7s` where there are keys to sign it) and
    `NAME.rpi-imager-manifest`, NAME being that of the image without `.img`. All but the last and the
    signature are the same bytes for the same image.

    Args:
        image: the unpacked image, which need not lie in `folder`.
        parts: what it was made from.
        files: what else belongs to the release, all in `folder`; one of them is `NAME.img.xz`.
        signing: keys to sign the manifest with.
    """
    name = image.name.removesuffix(".img")
    described = describe(recipe, contents, image, parts, tell)
    bill = sbom.write(described, folder / f"{name}.cdx.json", distribution="debian-13", epoch=contents.epoch)
    tell("manifest", "checksums", None)
    listed = tuple(
        manifest.File(path.name, path.stat().st_size, file_digest(path)) for path in sorted([*files, bill])
    )
    described = msgspec.structs.replace(described, files=listed)
    shown = recipe.imager
    entry = imager.entry(
        described,
        f"{image.name}.xz",
        name=shown.name or recipe.title,
        description=shown.description or recipe.title,
        devices=shown.devices,
        init_format=shown.init_format,
        icon=shown.icon,
    )
    described = msgspec.structs.replace(described, imager=entry)
    path = folder / f"{name}{verify.SUFFIX}"
    manifest.write(described, path)
    imager.write(described, folder / f"{name}.rpi-imager-manifest", address=shown.url)
    if signing is not None:
        keys.sign(signing, path, path.with_name(path.name + verify.SIGNATURE))
    return path


def describe(
    recipe: Recipe, contents: Contents, image: Path, parts: Sequence[Part], tell: Tell
) -> manifest.Manifest:
    """The manifest of an unpacked image, without the files that lie beside it.

    Raises:
        FormatError: the image has not the partitions that it was made with.
    """
    size = image.stat().st_size
    with image.open("rb") as file:
        table = gpt.read(file.read(1 << 20))
    if table is None or [part.label for part in table.partitions] != [part.label for part in parts]:
        raise FormatError(f"{image.name} has other partitions than it was made with")
    held = [content(part) for part in parts]
    spans = [Span(part.start, part.start + count) for part, count in zip(table.partitions, held, strict=True)]
    sums = measure(image, spans, lambda done: tell("manifest", image.name, done / size))
    partitions = tuple(
        manifest.Partition(
            part.label, part.uuid, part.type, part.start, part.size, count, digest if count else ""
        )
        for part, count, digest in zip(table.partitions, held, sums.spans, strict=True)
    )
    return manifest.Manifest(
        device=recipe.name,
        title=recipe.title,
        version=contents.version,
        compatible=recipe.compatible,
        architecture=recipe.architecture,
        built=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(contents.epoch)),
        lock=contents.lock,
        image=manifest.File(image.name, size, sums.sha256),
        partitions=partitions,
        slots=tuple(contents.slots),
        files=(),
        debian=tuple(contents.debian),
        python=tuple(contents.python),
        models=tuple(contents.models),
        libraries=tuple(contents.libraries),
    )


def content(part: Part) -> int:
    """Bytes at the beginning of a partition that hold something."""
    if part.blocks:
        return part.blocks.stat().st_size
    return part.size if part.filesystem else 0
