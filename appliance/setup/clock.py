"""A clock for boards without a battery: it never goes back behind what the device has seen.

Such a board wakes up at the date its system was built. Everything written since tells a later time, so the
newest of these files is where the clock goes on. That is late by as long as the device was off; a time server
of the local network, or the owner's browser, puts it right.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

AHEAD = 20 * 365 * 86400
"""Seconds into the future beyond which a file's time is damage, not a clock."""


def seen(var: Path) -> Iterator[Path]:
    """Files that a running device keeps writing, below its /var."""
    yield from var.glob("log/journal/*/system.journal")
    yield from (var / name for name in ("lib/hob/hob.db", "lib/hob/hob.db-wal", "lib/hob-system/device.json"))


def floor(files: Iterable[Path], now: float) -> float:
    """The latest time at which one of `files` was written, or `now` where none is later."""
    times = [now]
    for file in files:
        try:
            written = file.stat().st_mtime
        except OSError:
            continue  # not there yet
        if written < now + AHEAD:
            times.append(written)
    return max(times)


def advance(var: Path) -> float:
    """Set the clock forward to what was seen last; the seconds it was behind (0 where it was not).

    Raises:
        OSError: the clock may not be set.
    """
    now = time.time()
    latest = floor(seen(var), now)
    if latest <= now:
        return 0.0
    time.clock_settime(time.CLOCK_REALTIME, latest)
    return latest - now


def kept(root: Path) -> bool:
    """Whether the clock can be trusted: a battery keeps it, or a time server has set it."""
    for mark in root.glob("sys/class/rtc/rtc*/hctosys"):
        try:
            if mark.read_text().strip() == "1":
                return True
        except OSError:
            continue
    return (root / "run/systemd/timesync/synchronized").exists()
