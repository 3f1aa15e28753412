"""Gives back what the cache holds and no build has used for a while."""

import time

from builder.errors import FormatError
from builder.image import packages
from builder.image.cache import Cache, Kept

DAY = 86400

VOLATILE = ("application", "overlay", "kernel", "root")
KEPT = 8


def unused(cache: Cache, days: int, now: float | None = None) -> list[Kept]:
    """Results that no build has used for so many days, and packages that no remembered lock names."""
    limit = (time.time() if now is None else now) - days * DAY
    found = [kept for kept in cache.kept() if kept.used < limit]
    named = {package.sha256 for lock in remembered(cache) for package in lock.packages}
    for path in sorted((cache.root / "debs").glob("*/*.deb")):
        status = path.stat()
        if path.stem not in named and status.st_mtime < limit:
            found.append(Kept("debs", path.stem, path, status.st_size, status.st_mtime))
    return found


def superseded(cache: Cache, now: float | None = None) -> list[Kept]:
    """Older results of the stages that every change of Hob makes anew: half a gigabyte each time.

    The newest of each stage stay, and whatever was used within a day, so that no build under way loses one.
    """
    limit = (time.time() if now is None else now) - DAY
    newest_first = sorted(cache.kept(), key=lambda kept: -kept.used)
    found = []
    for stage in VOLATILE:
        of_stage = [kept for kept in newest_first if kept.stage == stage]
        found += [kept for kept in of_stage[KEPT:] if kept.used < limit]
    return found


def remembered(cache: Cache) -> list[packages.Lock]:
    """The locks in the cache that can be read."""
    found = []
    for path in sorted((cache.root / "resolved").glob("*.toml")):
        try:
            found.append(packages.parse(path.read_text(), path))
        except FormatError:
            path.unlink()  # it would be resolved again anyway
    return found


def remove(cache: Cache, gone: list[Kept]) -> None:
    """Remove results and packages, and what killed builds have left."""
    with cache.scratch("gone") as grave:
        for kept in gone:
            # Moved first, so that a result is never there in part; who has a file open keeps it.
            kept.path.rename(grave / f"{kept.stage}-{kept.path.name}")
