"""What software a root file system holds: Debian packages, Python packages, models and their libraries."""

import email.parser
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from builder.errors import FormatError
from builder.image import wheels
from builder.image.cache import file_digest
from builder.image.manifest import File, Model, Package
from builder.image.packages import Lock
from builder.image.rootfs import LIST

SITE = f"opt/hob/lib/python{wheels.PYTHON}/site-packages"

MODEL_MANIFEST = "hob-model.json"
"""What the library adds to a model's files; no part of what names its version."""


class Software(TypedDict):
    """The software of an image, as its manifest lists it."""

    debian: tuple[Package, ...]
    python: tuple[Package, ...]
    models: tuple[Model, ...]
    libraries: tuple[File, ...]


def software(lock: Lock, base: Path, added: Path) -> Software:
    """All software of an image.

    Args:
        lock: its packages.
        base: the folder of the base root file system.
        added: the tree of what Hob adds.
    """
    site, shared = added / SITE, added / "usr/share/hob"
    models = {"hob-guide": site / "builder/guide/model"}
    models |= {path.name: path for path in sorted((shared / "models").iterdir())}
    return Software(
        debian=debian(
            json.loads((base / LIST).read_text()),
            {(package.name, package.version): package.sha256 for package in lock.packages},
        ),
        python=python(site),
        models=tuple(model(name, path) for name, path in models.items()),
        libraries=libraries(shared / "libraries"),
    )


def debian(
    installed: Iterable[Mapping[str, str]], sums: Mapping[tuple[str, str], str]
) -> tuple[Package, ...]:
    """Debian's packages.

    Args:
        installed: `name`, `version`, `architecture` of each.
        sums: the SHA-256 of packages by name and version.
    """
    return tuple(
        Package(
            name=entry["name"],
            version=entry["version"],
            architecture=entry["architecture"],
            sha256=sums.get((entry["name"], entry["version"]), ""),
        )
        for entry in sorted(installed, key=lambda entry: (entry["name"], entry["architecture"]))
    )


def python(site: Path) -> tuple[Package, ...]:
    """The packages in a `site-packages`, from what they say of themselves (PyPA's Core metadata).

    Raises:
        FormatError: one says nothing.
    """
    found = []
    for path in sorted(site.glob("*.dist-info")):
        try:
            fields = email.parser.HeaderParser().parsestr((path / "METADATA").read_text(encoding="utf-8"))
            name, version = fields["Name"].strip(), fields["Version"].strip()
        except (OSError, UnicodeDecodeError, AttributeError) as error:
            raise FormatError(f"{path.name} does not say which package it is") from error
        # Names are compared as PEP 503 says, so they are given that way.
        name = re.sub(r"[-_.]+", "-", name).lower()
        found.append(
            Package(name=name, version=version, licence=(fields["License-Expression"] or "").strip())
        )
    return tuple(sorted(found, key=lambda package: package.name))


def model(name: str, directory: Path) -> Model:
    """A model by the files that name its version: those of an MLC directory but hidden ones."""
    files = [
        File(path.name, path.stat().st_size, file_digest(path))
        for path in sorted(directory.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.name != MODEL_MANIFEST
    ]
    lines = "".join(f"{file.sha256} {file.size} {file.name}\n" for file in files)
    return Model(
        name=name,
        sha256=hashlib.sha256(lines.encode()).hexdigest(),
        size=sum(file.size for file in files),
        licence=_licence(directory),
    )


def libraries(folder: Path) -> tuple[File, ...]:
    """The compiled libraries in a folder."""
    return tuple(
        File(path.name, path.stat().st_size, file_digest(path)) for path in sorted(folder.glob("*.so"))
    )


def _licence(directory: Path) -> str:
    """What a model card says of its licence, in its front matter or in a list; "" if nothing."""
    for name in ("README.md", "MODEL_CARD.md"):
        card = directory / name
        if card.is_file():
            text = card.read_text(encoding="utf-8", errors="replace")[:65536]
            told = re.search(r"^(?:- \*\*Licence:\*\*|license:)\s*([A-Za-z0-9.+-]+)", text, re.MULTILINE)
            if told:
                return told[1].rstrip(".")
    return ""
