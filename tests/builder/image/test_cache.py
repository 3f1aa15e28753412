"""The cache of stages: results are whole or absent, found by what they were made from, and made once."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import SpaceError
from builder.image import prune
from builder.image.cache import Cache, digest, require_space, tree_digest


def letter(folder: Path) -> None:
    """A stage that writes a letter."""
    (folder / "letter").write_text("a")


def test_a_result_is_made_once(tmp_path: Path) -> None:
    """The second time, the same inputs give the same folder, and nothing is made."""
    cache, made = Cache(tmp_path), []

    def make(folder: Path) -> None:
        made.append(folder)
        letter(folder)

    first = cache.get("stage", {"x": 1}, make)
    assert cache.get("stage", {"x": 1}, make) == first
    assert (first / "letter").read_text() == "a"
    assert len(made) == 1
    assert cache.get("stage", {"x": 2}, make) != first
    assert cache.has("stage", {"x": 2})


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    """Neither a result nor its scratch folder; the next try makes it."""
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        letter(folder)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.get("stage", {}, fail)
    assert not cache.has("stage", {})
    assert list((tmp_path / "scratch").iterdir()) == []
    assert (cache.get("stage", {}, letter) / "letter").exists()


def slow(root: str, log: str) -> None:
    """Make one result, slowly, and note that it was made."""

    def make(folder: Path) -> None:
        with Path(log).open("a") as file:
            file.write("made\n")
        letter(folder)

    Cache(Path(root)).get("stage", {}, make)


def test_two_processes_make_a_result_once(tmp_path: Path) -> None:
    """The second waits for the first and takes what that has made."""
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=slow, args=(str(tmp_path / "cache"), str(log))) for _ in range(3)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "made\n"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Its lock ended with it, so the next one that works there tidies up; a living one's folder stays."""
    cache = Cache(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from builder.image.cache import Cache\n"
        "with Cache(Path(sys.argv[1])).scratch('killed') as folder:\n"
        "    (folder / 'file').touch(); print(folder, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with cache.scratch("living"):
            assert left.exists()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert left.exists()
        with cache.scratch("next") as folder:
            assert not left.exists()
            assert folder.exists()


def test_a_digest_of_a_folder_sees_every_change(tmp_path: Path) -> None:
    """Names, contents, modes and links count; times do not."""
    (tmp_path / "a").write_text("1")
    (tmp_path / "link").symlink_to("a")
    seen = {tree_digest(tmp_path)}
    os.utime(tmp_path / "a", (1, 1))
    assert tree_digest(tmp_path) in seen
    changes: list[Callable[[], object]] = [
        lambda: (tmp_path / "a").write_text("2"),
        lambda: (tmp_path / "a").chmod(0o755),
        lambda: (tmp_path / "a").rename(tmp_path / "b"),
        lambda: (tmp_path / "empty").mkdir(),
        lambda: (tmp_path / "link").unlink(),
        lambda: (tmp_path / "link").symlink_to("b"),
    ]
    for change in changes:
        change()
        assert tree_digest(tmp_path) not in seen
        seen.add(tree_digest(tmp_path))


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    """The same inputs, written down in another order, are the same."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_a_disk_that_is_too_small_is_said_before_the_work(tmp_path: Path) -> None:
    """The folder need not exist yet; the message names it and what is free."""
    require_space(tmp_path / "not/yet", 1, "A test")
    with pytest.raises(SpaceError, match=r"A test needs 1000000000\.0 GB in .*not/yet") as caught:
        require_space(tmp_path / "not/yet", 10**18, "A test")
    assert "HOB_IMAGE_CACHE" in caught.value.hint


def test_pruning_removes_what_is_unused(tmp_path: Path) -> None:
    """Results older than the limit go, and packages that no remembered lock names; the rest stays."""
    cache = Cache(tmp_path)
    old, new = cache.get("stage", {"n": 1}, letter), cache.get("stage", {"n": 2}, letter)
    deb = tmp_path / "debs/ab" / ("ab" + "0" * 62 + ".deb")
    deb.parent.mkdir(parents=True)
    deb.write_bytes(b"x" * 10)
    now = (new / ".inputs.json").stat().st_mtime
    for path in (old / ".inputs.json", deb):
        os.utime(path, (now - 10 * prune.DAY, now - 10 * prune.DAY))
    gone = prune.unused(cache, 9, now)
    assert [kept.path for kept in gone] == [old, deb]
    assert [kept.size for kept in gone][1] == 10
    prune.remove(cache, gone)
    assert not old.exists()
    assert not deb.exists()
    assert (new / "letter").exists()
    assert prune.unused(cache, 9, now) == []


def test_what_hob_itself_changes_is_kept_a_few_times(tmp_path: Path) -> None:
    """Of the stages that each change makes anew the newest stay, and what was used today."""
    cache = Cache(tmp_path)
    roots = [cache.get("root", {"n": number}, letter) for number in range(prune.KEPT + 3)]
    base = cache.get("rootfs", {}, letter)
    now = (base / ".inputs.json").stat().st_mtime
    for age, place in enumerate(reversed(roots)):
        os.utime(place / ".inputs.json", (now - age * prune.DAY / prune.KEPT,) * 2)
    os.utime(base / ".inputs.json", (1, 1))
    assert {kept.path for kept in prune.superseded(cache, now)} == {*roots[:2]}
    assert {kept.path for kept in prune.superseded(cache, now + prune.DAY)} == {*roots[:3]}
