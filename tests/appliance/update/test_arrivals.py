"""Update files on their way: offered at an address, fetched, on a stick, copied."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from appliance.errors import DamagedError, DiskFullError, DownloadError
from appliance.library import space
from appliance.library.remote import session
from appliance.update import arrivals, offer
from appliance.update.fetch import fetch
from appliance.update.newest import newest

DATA = os.urandom(300_000)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, without a word."""

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """What a release's folder on a web server has."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "hob-nuc-0.2.0.raucb").write_bytes(DATA)
    describe(folder)
    return folder


def describe(folder: Path, **changes: object) -> None:
    """Write the release's manifest."""
    told = {
        "format": 1,
        "version": "0.2.0",
        "compatible": "hob-x86-64",
        "files": [
            {"name": "hob-nuc-0.2.0.img.xz", "size": 5, "sha256": "0" * 64},
            {"name": "hob-nuc-0.2.0.raucb", "size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()},
        ],
        **changes,
    }
    (folder / "hob-nuc.manifest.json").write_text(json.dumps(told))


@pytest.fixture
def url(shelf: Path) -> Iterator[str]:
    """The address of the release's manifest."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shelf))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hob-nuc.manifest.json"
        server.shutdown()
        thread.join()


def found(url: str) -> offer.Offer:
    """What an address offers."""
    with session() as client:
        return offer.find(client, url)


def test_an_offer_is_fetched_whole(url: str, tmp_path: Path) -> None:
    """The manifest leads to the file beside it, which is held against its checksum."""
    told: list[tuple[int, int | None]] = []
    data = tmp_path / "data"
    file = fetch(found(url).file, data, lambda *so_far: told.append(so_far))
    assert file == data / "updates/hob-nuc-0.2.0.raucb"
    assert file.read_bytes() == DATA
    assert told[-1] == (len(DATA), len(DATA))
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_is_another(url: str, shelf: Path, tmp_path: Path) -> None:
    """Content that is not what the manifest says is not kept."""
    (shelf / "hob-nuc-0.2.0.raucb").write_bytes(DATA[::-1])
    with pytest.raises(DamagedError):
        fetch(found(url).file, tmp_path, lambda *_: None)
    assert list((tmp_path / "updates").iterdir()) == []


def test_the_address_of_a_file(url: str, tmp_path: Path) -> None:
    """An update file's own address does as well; nobody tells its version."""
    direct = found(url.replace("hob-nuc.manifest.json", "hob-nuc-0.2.0.raucb"))
    assert (direct.version, direct.compatible) == ("", "")
    assert fetch(direct.file, tmp_path, lambda *_: None).read_bytes() == DATA


def test_no_room(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that does not fit is not begun, and the reserve stays."""
    monkeypatch.setattr(space, "free", lambda folder: space.RESERVE + len(DATA) - 1)
    with pytest.raises(DiskFullError):
        fetch(found(url).file, tmp_path, lambda *_: None)
    assert list((tmp_path / "updates").iterdir()) == []
    (tmp_path / "x.raucb").write_bytes(DATA)
    with pytest.raises(DiskFullError):
        arrivals.take(tmp_path / "x.raucb", tmp_path, lambda *_: None)


def test_newest(url: str) -> None:
    """Only what is newer, and for this device, counts."""
    assert newest(url, "hob-x86-64", "0.1.0") == "0.2.0"
    assert newest(url, "hob-x86-64", "0.2.0") == ""
    with pytest.raises(DownloadError, match="has updates for hob-x86-64, and this is hob-rpi5"):
        newest(url, "hob-rpi5", "0.1.0")
    with pytest.raises(DownloadError, match="does not tell which version"):
        newest(url.replace("hob-nuc.manifest.json", "hob-nuc-0.2.0.raucb"), "hob-x86-64", "0.1.0")


@pytest.mark.parametrize("text", ["", "[]", "<html>", '{"version": "1", "compatible": "x"}'])
def test_what_is_no_manifest(url: str, shelf: Path, text: str) -> None:
    """A page that somebody put there is no offer."""
    (shelf / "hob-nuc.manifest.json").write_text(text)
    with pytest.raises(DownloadError, match="no manifest"):
        found(url)


def test_a_release_without_an_update(url: str, shelf: Path) -> None:
    """Built without keys, a release has none; nor does a path count as a name."""
    describe(shelf, files=[{"name": "../../x.raucb", "size": 1, "sha256": "0" * 64}])
    with pytest.raises(DownloadError, match="lists no update"):
        found(url)


def test_sticks(tmp_path: Path) -> None:
    """Update files on sticks are found by their ending, a few folders deep; links to nothing are not."""
    for name in ("STICK/hob.raucb", "me/STICK/folder/new.raucb", "STICK/photo.jpg", "a/b/c/d/deep.raucb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "STICK/gone.raucb").symlink_to(tmp_path / "nowhere")
    (tmp_path / "STICK/folder.raucb").mkdir()
    assert arrivals.sticks([tmp_path, tmp_path / "absent"]) == [
        arrivals.Found(tmp_path / "STICK/hob.raucb", 5),
        arrivals.Found(tmp_path / "me/STICK/folder/new.raucb", 5),
    ]


def test_copying_a_file(tmp_path: Path) -> None:
    """It appears whole; a file that is there already is not copied onto itself."""
    data, source = tmp_path / "data", tmp_path / "mine.raucb"
    data.mkdir()
    source.write_bytes(DATA)
    copy = arrivals.take(source, data, lambda *_: None)
    assert copy.read_bytes() == DATA
    assert arrivals.take(copy, data, lambda *_: None) == copy
    assert copy.read_bytes() == DATA
    assert [path.name for path in copy.parent.iterdir()] == ["mine.raucb"]


def test_what_nobody_came_back_for(tmp_path: Path) -> None:
    """Half a download is kept for a week."""
    old, young = (tmp_path / "updates" / name for name in ("old.raucb.part", "young.raucb.part"))
    old.parent.mkdir()
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    os.utime(young, (900_000, 900_000))
    arrivals.sweep(tmp_path, now=1_000_000)
    assert list(old.parent.iterdir()) == [young]
