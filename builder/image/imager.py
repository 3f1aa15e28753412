"""What Raspberry Pi Imager is told of an image, so that it offers settings for it and checks what it writes.

An entry of an operating-system list, and a file of its own that opens in Imager by a double click and holds
just this one entry. The format is the project's `doc/json-schema/os-list-schema.json`. Imager takes only
whole URLs, so the file is for the folder it was written to, or for the address that the recipe names.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builder.image.manifest import Manifest

ICON = Path(__file__).parents[2] / "webui/static/touch-icon.png"
ARCHITECTURES = {"arm64": "armv8"}
"""Imager's names for those it sorts by."""


def entry(
    manifest: Manifest,
    packed: str,
    *,
    name: str,
    description: str,
    devices: Sequence[str],
    init_format: str,
    icon: str = "",
) -> dict[str, Any]:
    """The entry for the file `packed` of a release, with its name for a URL.

    Args:
        devices: tags of the boards it is for ("pi5-64bit"); none: a tag of its own.
        init_format: how Imager leaves settings: "cloudinit", "rpi-preseed", "none" …
        icon: a URL; "" for none.
    """
    file = manifest.file(packed)
    assert file is not None, f"{packed} is not in the manifest"
    found: dict[str, Any] = {
        "name": f"{name} {manifest.version}",
        "description": description,
        "icon": icon,
        "url": packed,
        "extract_size": manifest.image.size,
        "extract_sha256": manifest.image.sha256,
        "image_download_size": file.size,
        "image_download_sha256": file.sha256,
        "release_date": manifest.built[:10],
        "init_format": init_format,
        "devices": list(devices) or [f"hob-{manifest.device}"],
    }
    if manifest.architecture in ARCHITECTURES:
        found["architecture"] = ARCHITECTURES[manifest.architecture]
    return found


def write(manifest: Manifest, path: Path, *, address: str = "") -> Path:
    """Write `NAME.rpi-imager-manifest` beside the image.

    Args:
        address: where the release can be downloaded, ending in a slash; "" for the folder of `path`.
    """
    path.write_text(
        json.dumps(document(manifest, address or f"{path.parent.absolute().as_uri()}/"), indent=1) + "\n"
    )
    return path


def document(manifest: Manifest, address: str) -> dict[str, Any]:
    """A list with one device and one operating system, complete without a network."""
    described: Mapping[str, Any] = manifest.imager
    icon = described["icon"] or "data:image/png;base64," + base64.b64encode(ICON.read_bytes()).decode()
    device = {
        "name": manifest.title,
        "description": described["description"],
        "icon": icon,
        "tags": described["devices"],
        "matching_type": "exclusive",
        "default": True,
    }
    found = {**described, "icon": icon, "url": address + described["url"]}
    return {"imager": {"devices": [device]}, "os_list": [found]}
