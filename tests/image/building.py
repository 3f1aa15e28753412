"""Images for the tests, built as people build them: by `hob image build`, from packages that are kept."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.service import HOB

BUILD_SECONDS = 1500
"""The bound of a build from nothing on two slow cores."""


@dataclass(frozen=True)
class Release:
    """What `hob image build` left in a folder."""

    folder: Path

    def file(self, ending: str) -> Path:
        """The one file with this ending, such as `.img.xz`."""
        (found,) = self.folder.glob(f"*{ending}")
        return found

    def unpack(self) -> Path:
        """The disk image as it is written to a disk; unpacked beside the packed one, once."""
        if unpacked := sorted(self.folder.glob("*.img")):
            return unpacked[0]
        packed = self.file(".img.xz")
        image = packed.with_suffix("")
        # xz leaves runs of zeroes out again when it writes a file by itself.
        subprocess.run(["xz", "--decompress", "--keep", "--threads=0", packed], check=True)
        return image


def build(recipe: str | Path, out: Path, environment: dict[str, str], *flags: str | Path) -> Release:
    """Build a recipe's image into a folder.

    Raises:
        AssertionError: the build failed; carries what it said.
    """
    hob_image(environment, "build", recipe, "--out", out, *flags)
    return Release(out)


def hob_image(environment: dict[str, str], *arguments: str | Path) -> str:
    """Run a verb of `hob image`; its standard output."""
    done = subprocess.run(
        [HOB, "image", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (
        f"hob image {arguments[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    )
    return done.stdout
