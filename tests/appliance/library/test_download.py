"""Files over HTTP: whole, right, resumed where they broke off, and never larger than announced."""

import hashlib
import json
import random
from pathlib import Path

import httpx2 as httpx
import pytest

from appliance.errors import AuthenticationError, DamagedError, DiskFullError, DownloadError, HobError
from appliance.library import space
from appliance.library.download import ATTEMPTS, fetch
from appliance.library.remote import Patience, Remote, look, read
from tests.appliance.library.adding import QUICK
from tests.appliance.library.hub import Hub, git_blob

REPOSITORY = "someone/model"
DATA = random.Random(1).randbytes(300_000)


@pytest.fixture
def remote(server: Hub) -> Remote:
    """A file of 300 kB on the hub, with its checksum."""
    commit = server.publish(REPOSITORY, {"weights.bin": DATA})
    url = f"{server.url}/{REPOSITORY}/resolve/{commit}/weights.bin"
    return Remote(url, "weights.bin", len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the file goes; nothing else is in its folder."""
    folder = tmp_path / "fetched"
    folder.mkdir()
    return folder / "weights.bin"


def without_checksum(remote: Remote) -> Remote:
    """The same file where nobody tells its checksum."""
    return Remote(remote.url, remote.name, remote.size)


def test_a_file_arrives_whole(client: httpx.Client, remote: Remote, target: Path) -> None:
    """The content is there under its name alone, and every byte was reported."""
    counts: list[int] = []
    fetch(client, remote, target, counts.append, QUICK)
    assert target.read_bytes() == DATA
    assert [path.name for path in target.parent.iterdir()] == ["weights.bin"]
    assert counts == sorted(counts)
    assert counts[-1] == len(DATA)


@pytest.mark.parametrize("fault", ["stall", "truncate", 500, 503, 429, 408])
def test_what_may_pass_is_tried_again(
    client: httpx.Client, server: Hub, remote: Remote, target: Path, fault: object
) -> None:
    """After silence, a broken connection or a busy server, the transfer goes on."""
    server.faults["weights.bin"] = [fault, fault]
    fetch(client, remote, target, patience=QUICK)
    assert target.read_bytes() == DATA


def test_it_goes_on_where_it_broke_off(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """The second request asks for the rest of the same version, and no byte is sent twice."""
    server.faults["weights.bin"] = ["truncate"]
    fetch(client, remote, target, patience=QUICK)
    first, second = server.asked("weights.bin")
    assert "range" not in first
    assert second["range"] == f"bytes={len(DATA) // 2}-"
    assert second["if-range"] == f'"{hashlib.md5(DATA).hexdigest()}"'  # noqa: S324 - the server's tag


def test_it_goes_on_after_a_restart(client: httpx.Client, server: Hub, remote: Remote, target: Path) -> None:
    """What lies there when a process was killed is taken up by the next one."""
    server.faults["weights.bin"] = ["truncate"] * ATTEMPTS
    with pytest.raises(DownloadError, match=r"does not send weights\.bin"):
        fetch(client, without_checksum(remote), target, patience=QUICK)
    assert not target.exists()
    have = target.with_name("weights.bin.part").stat().st_size
    assert 0 < have < len(DATA)
    fetch(client, without_checksum(remote), target, patience=QUICK)
    assert target.read_bytes() == DATA
    assert server.asked("weights.bin")[-1]["range"] == f"bytes={have}-"


def test_content_that_changed_meanwhile_starts_anew(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """Two versions are never joined: where the tag is another, the file comes from its beginning."""
    changed = bytes(byte ^ 1 for byte in DATA)
    server.faults["weights.bin"] = ["truncate", "change"]
    fetch(client, without_checksum(remote), target, patience=QUICK)
    assert target.read_bytes() == changed


def test_a_server_without_ranges_is_no_obstacle(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """A whole file in answer to a question for the rest replaces what was there."""
    server.faults["weights.bin"] = ["truncate", "no range"]
    fetch(client, remote, target, patience=QUICK)
    assert target.read_bytes() == DATA


def test_another_part_than_asked_for_is_refused(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """A range that starts elsewhere would shift everything behind it."""
    server.faults["weights.bin"] = ["truncate", "other part"]
    with pytest.raises(DownloadError, match="another part"):
        fetch(client, remote, target, patience=QUICK)


@pytest.mark.parametrize("fault", ["longer", "shorter"])
def test_a_length_that_is_not_the_files_is_refused(
    client: httpx.Client, server: Hub, remote: Remote, target: Path, fault: str
) -> None:
    """What the server announces must be what the repository says, before a byte of it is kept."""
    server.faults["weights.bin"] = [fault] * ATTEMPTS
    with pytest.raises(DownloadError, match=r"weights\.bin"):
        fetch(client, remote, target, patience=QUICK)
    assert not target.exists()
    assert not target.with_name("weights.bin.part").exists()


def test_damaged_content_is_fetched_once_more_and_then_refused(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """A wrong checksum names both sums; nothing of it stays."""
    server.faults["weights.bin"] = ["corrupt"]
    with pytest.raises(DamagedError, match=remote.sha256):
        fetch(client, remote, target, patience=QUICK)
    assert list(target.parent.iterdir()) == []


def test_a_beginning_that_suffered_is_fetched_anew(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """When the joined file is wrong, the part that lay here may be at fault: it starts from zero, once."""
    target.with_name("weights.bin.part").write_bytes(bytes(1000))
    tag = hashlib.md5(DATA).hexdigest()  # noqa: S324 - the server's tag
    target.with_name("weights.bin.part.json").write_text(json.dumps({"etag": f'"{tag}"', "safe": 1000}))
    fetch(client, remote, target, patience=QUICK)
    assert target.read_bytes() == DATA


def test_without_a_checksum_only_what_is_on_disk_counts(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """After a power cut a file may end in zeros; where nothing would show that, they are fetched again."""
    target.with_name("weights.bin.part").write_bytes(DATA[:1000] + bytes(5000))
    tag = hashlib.md5(DATA).hexdigest()  # noqa: S324 - the server's tag
    target.with_name("weights.bin.part.json").write_text(json.dumps({"etag": f'"{tag}"', "safe": 1000}))
    fetch(client, without_checksum(remote), target, patience=QUICK)
    assert target.read_bytes() == DATA
    assert server.asked("weights.bin")[0]["range"] == "bytes=1000-"


def test_a_gateways_page_costs_nothing(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """Something else of another length in between does not undo what is here."""
    server.faults["weights.bin"] = ["truncate", "gateway"]
    with pytest.raises(DownloadError, match="should have"):
        fetch(client, remote, target, patience=QUICK)
    fetch(client, remote, target, patience=QUICK)
    assert target.read_bytes() == DATA
    assert server.asked("weights.bin")[-1]["range"] == f"bytes={len(DATA) // 2}-"


def test_more_here_than_there_starts_anew(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """Leftovers of a longer file do not stand in the way."""
    target.with_name("weights.bin.part").write_bytes(bytes(len(DATA) + 5))
    fetch(client, remote, target, patience=QUICK)
    assert target.read_bytes() == DATA


def test_gits_checksum_counts_where_there_is_no_other(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """Small files of a repository have git's own sum, which is compared as well."""
    right = Remote(remote.url, remote.name, remote.size, git=git_blob(DATA))
    fetch(client, right, target, patience=QUICK)
    target.unlink()
    with pytest.raises(DamagedError, match="git SHA-1"):
        fetch(client, Remote(remote.url, remote.name, remote.size, git="0" * 40), target, patience=QUICK)


@pytest.mark.parametrize(
    ("fault", "error"), [(401, AuthenticationError), (403, AuthenticationError), (404, DownloadError)]
)
def test_refusals_are_not_repeated(
    client: httpx.Client, server: Hub, remote: Remote, target: Path, fault: int, error: type[HobError]
) -> None:
    """Asking again changes nothing, so it is asked once, and the status is named."""
    server.faults["weights.bin"] = [fault]
    with pytest.raises(error, match=str(fault)):
        fetch(client, remote, target, patience=QUICK)
    assert len(server.asked("weights.bin")) == 1


def test_a_server_that_stays_away_is_given_up(
    client: httpx.Client, server: Hub, remote: Remote, target: Path
) -> None:
    """After a number of attempts without progress there is an error that says how to go on."""
    server.faults["weights.bin"] = [503] * 99
    with pytest.raises(DownloadError, match="503") as caught:
        fetch(client, remote, target, patience=QUICK)
    assert "goes on" in caught.value.hint
    assert len(server.asked("weights.bin")) == ATTEMPTS


def test_a_trickle_counts_as_a_stall(client: httpx.Client, server: Hub, remote: Remote, target: Path) -> None:
    """A server that sends, but hardly anything, does not hold a download for ever."""
    server.faults["weights.bin"] = ["no range"] * ATTEMPTS
    hurried = Patience(silence=5, pause=0.01, window=1e-9, rate=1e30)
    with pytest.raises(DownloadError, match="slowly"):
        fetch(client, remote, target, patience=hurried)


def test_a_token_stays_with_its_host(client: httpx.Client, server: Hub, remote: Remote, target: Path) -> None:
    """The storage that the hub leads to is another host: it never sees the token."""
    server.gated.add(REPOSITORY)
    secret = {"authorization": f"Bearer {server.token}"}
    fetch(
        client,
        Remote(remote.url, remote.name, remote.size, remote.sha256, headers=secret),
        target,
        patience=QUICK,
    )
    assert target.read_bytes() == DATA
    assert all("authorization" not in headers for headers in server.asked("weights.bin"))
    assert "hf_" not in repr(Remote(remote.url, remote.name, headers=secret))


def test_no_room_is_said_before_anything_is_written(
    client: httpx.Client, remote: Remote, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot fit is not begun."""
    monkeypatch.setattr(space, "free", lambda folder: 1000)
    with pytest.raises(DiskFullError, match="300 kB needed"):
        fetch(client, remote, target, patience=QUICK)


def test_look_tells_the_length(client: httpx.Client, server: Hub, remote: Remote) -> None:
    """One request shows how large a file is; a server that does not tell leaves it open."""
    assert look(client, Remote(remote.url, "weights.bin")).size == len(DATA)
    server.faults["weights.bin"] = ["chunked"]
    assert look(client, Remote(remote.url, "weights.bin")).size is None


def test_small_files_are_read_to_a_limit(client: httpx.Client, remote: Remote) -> None:
    """A description that is too large is not taken into memory."""
    assert read(client, remote, len(DATA)) == DATA
    with pytest.raises(DownloadError, match="larger than 1000 bytes"):
        read(client, remote, 1000)


def test_nobody_there(client: httpx.Client, target: Path) -> None:
    """A machine that does not answer is named."""
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1"):
        fetch(client, Remote("http://127.0.0.1:9/x.gguf", "x.gguf", 10), target, patience=QUICK)
