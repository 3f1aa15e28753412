"""The units are sound as far as systemd can tell without running them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[1] / "systemd"

# Where the units find their programs, and where they lie here.
PROGRAMS = {
    "/opt/hob/bin/hob": Path(sys.executable).with_name("hob"),
    "/opt/hob/bin/python": Path(sys.executable),
    "/usr/lib/hob/slots": UNITS.parent / "builder/image/system/common/usr/lib/hob/slots",
}

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    """No unknown key, no misspelt value, no missing program once Hob is where the unit expects it."""
    for other in UNITS.iterdir():  # units name one another
        text = other.read_text()
        for installed, here in PROGRAMS.items():
            text = text.replace(installed, str(here))
        (tmp_path / other.name).write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / unit.name],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.name)
def test_little_is_exposed(unit: Path) -> None:
    """systemd's own measure of what a unit could do to the system stays low; 10 is everything."""
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-300:] + result.stderr
