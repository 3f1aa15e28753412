"""The clock of a board without a battery."""

import os
from pathlib import Path

from appliance.setup import clock


def file(path: Path, written: float) -> Path:
    """A file that was written at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    os.utime(path, (written, written))
    return path


def test_the_clock_goes_on_where_the_device_stopped(tmp_path: Path) -> None:
    """The newest of what it wrote last, wherever that lies."""
    file(tmp_path / "log/journal/abc/system.journal", 2000)
    file(tmp_path / "lib/hob/hob.db", 3000)
    file(tmp_path / "lib/hob-system/device.json", 1000)
    assert clock.floor(clock.seen(tmp_path), 500) == 3000


def test_a_clock_that_is_ahead_is_left_alone(tmp_path: Path) -> None:
    """A battery knows better than files do."""
    file(tmp_path / "lib/hob/hob.db", 3000)
    assert clock.floor(clock.seen(tmp_path), 4000) == 4000
    assert clock.advance(tmp_path) == 0


def test_a_time_that_cannot_be_is_damage(tmp_path: Path) -> None:
    """One file from the next century does not take the clock there."""
    file(tmp_path / "lib/hob/hob.db", 500 + clock.AHEAD + 1)
    assert clock.floor(clock.seen(tmp_path), 500) == 500


def test_whether_the_clock_is_kept(tmp_path: Path) -> None:
    """By a battery that the kernel took the time from, or by a time server; else it is not."""
    assert not clock.kept(tmp_path)
    mark = tmp_path / "sys/class/rtc/rtc0/hctosys"
    mark.parent.mkdir(parents=True)
    mark.write_text("0\n")
    assert not clock.kept(tmp_path)
    mark.write_text("1\n")
    assert clock.kept(tmp_path)
    mark.unlink()
    (tmp_path / "run/systemd/timesync").mkdir(parents=True)
    (tmp_path / "run/systemd/timesync/synchronized").touch()
    assert clock.kept(tmp_path)
