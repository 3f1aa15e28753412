"""Hob itself as the device has it: its own package, built from a checkout."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from builder.errors import BuildError, FormatError, ToolMissingError
from builder.image.bytecode import precompile
from builder.image.toolbox import Toolbox
from builder.image.wheels import PYTHON

PACKAGES = ("appliance", "builder", "webui")
BESIDE = ("pyproject.toml", "README.md", "LICENSE")
"""What the wheel is built from, next to the packages."""

ENTRY = """\
#!/opt/hob/bin/python -I
import sys

from appliance.cli import main

sys.exit(main())
"""
"""/opt/hob/bin/hob. Isolated (-I): no variable and no current folder brings in other modules."""

CONFIGURATION = f"""\
home = /usr/bin
include-system-site-packages = false
version = {PYTHON}
"""
"""pyvenv.cfg (PEP 405): this folder is a virtual environment of the system's Python."""


def install(out: Path, *, checkout: Path, version: str, epoch: int, toolbox: Toolbox) -> None:
    """Fill the empty folder `out`, which is /opt/hob on the device, with Hob and what starts it.

    Only `lib/python3.13/site-packages` is shared with the other packages.

    Args:
        checkout: the sources; see `checkout_of`.
        version: what Hob calls itself.
        epoch: time of the files in the wheel, in seconds since 1970.

    Raises:
        FormatError: the checkout lacks something.
        ToolMissingError, BuildError: the wheel cannot be built.
    """
    site = out / f"lib/python{PYTHON}/site-packages"
    site.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch, "sources")
        copy_sources(checkout, sources, version)
        with zipfile.ZipFile(_wheel(sources, Path(scratch, "wheel"), epoch)) as wheel:
            wheel.extractall(site)
    next(site.glob("*.dist-info/RECORD")).unlink()  # as with the other packages
    precompile(site, f"/opt/hob/lib/python{PYTHON}/site-packages", toolbox)
    (out / "pyvenv.cfg").write_text(CONFIGURATION, encoding="utf-8")
    programs = out / "bin"
    programs.mkdir()
    (programs / "python").symlink_to("/usr/bin/python3")
    (programs / "python3").symlink_to("python")
    (programs / "hob").write_text(ENTRY, encoding="utf-8")
    (programs / "hob").chmod(0o755)


def checkout_of(module: str = __file__) -> Path:
    """The checkout that this very code lies in.

    Raises:
        BuildError: it was installed without its sources.
    """
    checkout = Path(module).resolve().parents[2]
    if not (checkout / "pyproject.toml").is_file():
        raise BuildError(
            "images are built from a clone of Hob's repository, and this Hob is installed without it",
            hint="Clone the repository, and run `just hob image build ...` there.",
        )
    return checkout


def sources(checkout: Path) -> list[Path]:
    """The files that the application is made of, sorted, without what Python and editors leave behind.

    Raises:
        FormatError: the checkout lacks something.
    """
    found = [checkout / name for name in BESIDE]
    for package in PACKAGES:
        found += sorted(
            path
            for path in (checkout / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
        )
    if missing := [path for path in [*found, *(checkout / p for p in PACKAGES)] if not path.exists()]:
        raise FormatError(f"{checkout} is not a checkout of Hob: it lacks {missing[0].name}")
    return found


def copy_sources(checkout: Path, target: Path, version: str) -> None:
    """Copy what the wheel is built from, with another version written into it.

    Raises:
        FormatError: as `sources`; or the version stands nowhere in the checkout.
    """
    for path in sources(checkout):
        copy = target / path.relative_to(checkout)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for name, pattern in (
        ("pyproject.toml", r'(?m)^version = "[^"]*"$'),
        ("appliance/__init__.py", r'(?m)^__version__ = "[^"]*"$'),
    ):
        file = target / name
        text, count = re.subn(
            pattern, lambda match: f'{match[0].partition(" = ")[0]} = "{version}"', file.read_text("utf-8")
        )
        if count != 1:
            raise FormatError(f"{checkout / name} has {count} lines with its version, wanted 1")
        file.write_text(text, encoding="utf-8")


def _wheel(project: Path, out: Path, epoch: int) -> Path:
    """Build the wheel of `project`; its bytes depend on the sources and the epoch alone."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=project,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(max(epoch, 315532800))},  # zip knows no time before 1980
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named hatchling" in done.stderr:
        raise ToolMissingError(
            "Hob's own package cannot be built: hatchling is not installed",
            hint="Run `pip install --require-hashes -r requirements/service.txt`.",
        )
    if done.returncode != 0:
        raise BuildError(f"hatchling cannot build Hob: {done.stderr.strip().splitlines()[-1:]}")
    return next(out.glob("*.whl"))
