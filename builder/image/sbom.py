"""The bill of materials of an image, as CycloneDX 1.6 JSON (ECMA-424), for programs that know of faults.

Packages are named by package URLs (the purl specification), under which vulnerability databases list them.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_DNS, uuid5

import msgspec

from builder.image.manifest import Manifest, Package

HOB = "hob-appliance"
"""Hob's own package."""


def write(manifest: Manifest, path: Path, *, distribution: str = "debian-13", epoch: int) -> Path:
    """Write the bill: the same bytes for the same content."""
    text = msgspec.json.encode(document(manifest, distribution=distribution, epoch=epoch), order="sorted")
    path.write_bytes(msgspec.json.format(text, indent=1) + b"\n")
    return path


def document(manifest: Manifest, *, distribution: str = "debian-13", epoch: int) -> dict[str, Any]:
    """The bill of materials.

    Args:
        distribution: what the Debian packages belong to.
        epoch: when the packages were locked, which is when the bill was true; Unix time.
    """
    name = f"hob-{manifest.device}"
    root = f"image:{name}@{manifest.version}"
    parts = list(components(manifest, distribution))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same bill has the same number, as the format asks for.
        "serialNumber": uuid5(NAMESPACE_DNS, f"{name}/{manifest.version}/{manifest.image.sha256}").urn,
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch)),
            "component": {
                "type": "operating-system",
                "bom-ref": root,
                "name": name,
                "version": manifest.version,
                "description": manifest.title,
                "hashes": [{"alg": "SHA-256", "content": manifest.image.sha256}],
            },
        },
        "components": parts,
        "dependencies": [{"ref": root, "dependsOn": sorted(part["bom-ref"] for part in parts)}],
    }


def components(manifest: Manifest, distribution: str) -> Iterator[dict[str, Any]]:
    """Everything the image is made of."""
    for package in manifest.debian:
        purl = (
            f"pkg:deb/debian/{quote(package.name)}@{quote(package.version)}"
            f"?arch={package.architecture}&distro={distribution}"
        )
        yield _package(package, purl)
    for package in manifest.python:
        part = _package(package, f"pkg:pypi/{quote(package.name)}@{quote(package.version)}")
        yield part | ({"type": "application"} if package.name == HOB else {})
    for model in manifest.models:
        yield {
            "type": "machine-learning-model",
            "bom-ref": f"model:{model.name}",
            "name": model.name,
            "version": model.sha256[:12],
            "properties": [
                {"name": "hob:files:sha256", "value": model.sha256},
                {"name": "hob:files:size", "value": str(model.size)},
            ],
        } | _licences(model.licence)
    for library in manifest.libraries:
        yield {
            "type": "library",
            "bom-ref": f"library:{library.name}",
            "name": library.name,
            "hashes": [{"alg": "SHA-256", "content": library.sha256}],
        }


def _package(package: Package, purl: str) -> dict[str, Any]:
    """A package; `purl` names it in the bill too."""
    part: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
    }
    if package.sha256:
        part["hashes"] = [{"alg": "SHA-256", "content": package.sha256}]
    return part | _licences(package.licence)


def _licences(expression: str) -> dict[str, Any]:
    """Licences as the format wants them; nothing where none is named."""
    return {"licenses": [{"expression": expression}]} if expression else {}
