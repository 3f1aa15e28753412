"""`hob image verify`: whether an image is what its manifest says."""

import time
from pathlib import Path

import click

from appliance.cli.telling import Teller, say, spoken
from builder.image import verify
from builder.image.manifest import Manifest

# What share of the whole each stage takes, and where it begins.
STAGES = {"signature": (0.0, 0.0), "files": (0.0, 0.15), "image": (0.15, 0.85)}


@click.command("verify")
@click.argument("path", metavar="FILE|DIR", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--keyring",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificates of those who may sign: keyring.pem of `hob image keys`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def command(path: Path, keyring: Path | None, as_json: bool) -> None:
    """Check an image, a file of its release, or all releases in a folder.

    Compares every file with the manifest, unpacks the image, and compares its partitions, slots and blocks.
    """
    with spoken(as_json):
        for found in verify.find(path):
            result = check(found, keyring, as_json)
            if as_json:
                say(summary(result))
            else:
                click.echo(describe(result))


def check(path: Path, keyring: Path | None, as_json: bool) -> verify.Verified:
    """Verify one release, telling how far it is."""
    told = Teller(f"Checking {path.name} ...", as_json)

    def tell(stage: str, text: str, share: float | None) -> None:
        start, part = STAGES[stage]
        told(text, start + part * (share or 0))

    try:
        return verify.verify(path, keyring=keyring, tell=tell)
    finally:
        told.stop()


def summary(result: verify.Verified) -> dict[str, object]:
    """What was found, for programs."""
    described = result.manifest
    return {
        "manifest": result.path.name,
        "device": described.device,
        "version": described.version,
        "compatible": described.compatible,
        "files": [file.name for file in described.files],
        "image_sha256": described.image.sha256,
        "slots": {slot.name: slot.filled for slot in described.slots},
        "signed": result.signed,
        "signature": result.signature,
        "block_map": result.blocks,
    }


def describe(result: verify.Verified) -> str:
    """What was found, for people."""
    described = result.manifest
    lines = [
        f"{described.image.name} is what its manifest says: Hob {described.version}, {described.title}",
        f"  {len(described.files)} files; {size(described)}",
        f"  partitions {', '.join(part.label for part in described.partitions)}; {slots(described)}",
    ]
    if result.signed is not None:
        day = time.strftime("%Y-%m-%d", time.gmtime(result.signed))
        lines.append(f"  signed on {day} by somebody the keyring trusts")
    elif result.signature:
        lines.append("  signed, by whom was not checked: name the keyring with --keyring")
    else:
        lines.append("  not signed: nobody vouches for where it comes from")
    return "\n".join(lines)


def slots(described: Manifest) -> str:
    """Which slots hold a system."""
    return ", ".join(
        f"slot {slot.name} {'holds it' if slot.filled else 'is empty'}" for slot in described.slots
    )


def size(described: Manifest) -> str:
    """How large the image is."""
    packed = described.file(f"{described.image.name}.xz")
    unpacked = f"{described.image.size / 1e9:.1f} GB unpacked"
    return f"{packed.size / 1e6:.0f} MB packed, {unpacked}" if packed else unpacked
