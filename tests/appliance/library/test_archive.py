"""One file for a whole model, and every way such a file may lie."""

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import ConflictError, DamagedError, HobError, LibraryError
from appliance.library import archive, manifest
from appliance.library.manifest import MANIFEST, Manifest, Origin
from appliance.library.shelf import describe
from tests.appliance.library.adding import MLC


@pytest.fixture
def kept() -> Manifest:
    """The manifest of the golden model."""
    return describe(MLC, "tiny", Origin("hub", "someone/model", "c0ffee"), "apache-2.0")


@pytest.fixture
def file(tmp_path: Path, kept: Manifest) -> Path:
    """The golden model in one file."""
    target = tmp_path / "tiny.hobmodel"
    archive.write(kept, MLC, target, lambda done: None)
    return target


def unpack(file: Path, folder: Path) -> Manifest:
    """Take an archive apart in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return archive.unpack(file, folder, lambda done: None)


def members(file: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What an archive holds, as Python's own tar sees it."""
    with tarfile.open(file) as tar:
        return [
            (member, stream.read() if (stream := tar.extractfile(member)) else b"")
            for member in tar.getmembers()
        ]


def rewrite(
    file: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None], form: int = tarfile.GNU_FORMAT
) -> None:
    """Write an archive anew with its members changed."""
    found = members(file)
    change(found)
    with tarfile.open(file, "w", format=form) as tar:
        for member, data in found:
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_a_model_travels_in_one_file(file: Path, kept: Manifest, tmp_path: Path) -> None:
    """What comes out is what went in, origin and licence included; progress reaches the size."""
    counts: list[int] = []
    (tmp_path / "out").mkdir()
    assert archive.peek(file) == archive.unpack(file, tmp_path / "out", counts.append) == kept
    assert describe(tmp_path / "out", "x", kept.origin, "").files == kept.files
    assert counts[-1] == kept.size
    assert archive.looks_like(file)
    assert file.stat().st_size == archive.size(kept)


def test_any_tar_reads_it(file: Path, kept: Manifest, tmp_path: Path) -> None:
    """The manifest comes first, and the system's own tar takes the rest apart."""
    names = [member.name for member, _ in members(file)]
    assert names == [MANIFEST, *(entry.name for entry in kept.files)]
    subprocess.run(["tar", "-xf", file, "-C", tmp_path], check=True)
    assert manifest.digest(tmp_path / "params_shard_0.bin") == kept.file("params_shard_0.bin")


def test_nothing_is_written_over(file: Path, kept: Manifest) -> None:
    """An existing file stays unless asked for."""
    before = file.read_bytes()
    with pytest.raises(ConflictError, match=r"tiny\.hobmodel"):
        archive.write(kept, MLC, file, lambda done: None)
    archive.write(kept, MLC, file, lambda done: None, replace=True)
    assert file.read_bytes() == before


def test_a_damaged_model_is_not_exported(kept: Manifest, mlc: Path, tmp_path: Path) -> None:
    """The file at fault is named, and nothing is left on the stick."""
    target = tmp_path / "stick"
    target.mkdir()
    (mlc / "tokenizer.json").write_bytes(bytes((mlc / "tokenizer.json").stat().st_size))
    with pytest.raises(DamagedError, match=r"tokenizer\.json"):
        archive.write(kept, mlc, target / "tiny.hobmodel", lambda done: None)
    assert list(target.iterdir()) == []


def _member(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(data)
    return member, data


def _lies(**changes: object) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    """A change of the manifest."""

    def change(found: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        told = json.loads(found[0][1])
        for key, value in changes.items():
            if key == "first":
                told["files"][0] |= value
            else:
                told[key] = value
        found[0] = found[0][0], json.dumps(told).encode()

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.append(_member("extra.txt")),
        lambda found: found.insert(1, _member("../../evil")),
        lambda found: found.insert(1, _member("/etc/cron.d/evil")),
        lambda found: found.insert(1, _member("a/b")),
        lambda found: found.insert(1, _member("link", b"", tarfile.SYMTYPE, "/etc/passwd")),
        lambda found: found.insert(1, _member("tokenizer.json", b"", tarfile.LNKTYPE, "/etc/passwd")),
        lambda found: found.insert(1, _member("device", b"", tarfile.CHRTYPE)),
        lambda found: found.insert(1, _member("pipe", b"", tarfile.FIFOTYPE)),
        lambda found: found.insert(1, _member("folder", b"", tarfile.DIRTYPE)),
        lambda found: found.insert(2, found[1]),
        lambda found: found.insert(0, _member("first.txt")),
        lambda found: found.pop(),
        lambda found: found.pop(0),
        lambda found: found.reverse(),
        lambda found: found.__setitem__(1, (found[1][0], found[1][1] + b"!")),
        lambda found: found.__setitem__(1, (found[1][0], bytes(len(found[1][1])))),
        lambda found: found.__setitem__(1, (tarfile.TarInfo("n" * 300), found[1][1])),
        _lies(name="../../evil"),
        _lies(first={"name": "../evil"}),
        _lies(first={"size": 2**40}),
        _lies(first={"sha256": "0" * 64}),
        _lies(format=99),
        _lies(files=[]),
        lambda found: found.__setitem__(0, (found[0][0], b"{" + b" " * 5 * 2**20)),
    ],
)
def test_what_lies_is_refused(
    file: Path, tmp_path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]
) -> None:
    """Anything but exactly the listed files is refused with the archive's name; nothing leaves the folder."""
    rewrite(file, change)
    with pytest.raises(DamagedError, match=r"tiny\.hobmodel"):
        unpack(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.hobmodel"]
    assert all(path.is_file() and not path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_extended_headers_are_refused(file: Path, tmp_path: Path) -> None:
    """A pax header could rename what follows, or ask for gigabytes: it is no plain file."""

    def change(found: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        found[1][0].pax_headers = {"path": "../../evil"}

    rewrite(file, change, tarfile.PAX_FORMAT)
    with pytest.raises(DamagedError, match="not a plain file"):
        unpack(file, tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.9, 0.99])
def test_what_was_cut_off_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    """A copy that ended early is noticed before anything is unpacked, and while it is."""
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedError):
        archive.peek(file)
    with pytest.raises(DamagedError):
        unpack(file, tmp_path / "out")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 4000), value=st.integers(0, 255))
def test_any_changed_byte_is_noticed(file: Path, tmp_path: Path, where: int, value: int) -> None:
    """Whatever a byte of the headers becomes, the files come out as they were, or not at all."""
    data = bytearray(file.read_bytes())
    before, data[where] = data[where], value
    changed = tmp_path / "changed.hobmodel"
    changed.write_bytes(data)
    try:
        kept = unpack(changed, tmp_path / "out")
    except HobError:
        assert before != value
    else:
        found = describe(tmp_path / "out", "x", kept.origin, "")
        assert found.files == kept.files


def test_a_stick_that_is_gone_is_said(tmp_path: Path) -> None:
    """A file that is not there any more is named."""
    with pytest.raises(LibraryError, match="gone"):
        archive.peek(tmp_path / "gone.hobmodel")
