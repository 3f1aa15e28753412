"""Copying from another Hob: a real one, with its own data folder, over HTTP."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2 as httpx
import pytest

from appliance.errors import AuthenticationError, DamagedError, DownloadError, HobError, UnknownModelError
from appliance.library.peer import address, look
from appliance.library.shelf import Shelf
from appliance.library.source import Peer
from appliance.library.verify import verify
from tests.appliance.library.adding import MLC, QUICK, Adding
from tests.appliance.library.hub import Hub
from tests.appliance.library.test_shelf import put
from tests.appliance.library.test_verify import damage
from tests.service import Hob, run_hob, start


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hob]:
    """Another Hob with two versions of a model, one of another owner, and one copied by hand."""
    data_dir = tmp_path_factory.mktemp("other")
    shelf = Shelf(data_dir / "models")
    put(shelf, "tiny", "a" * 40)
    put(shelf, "tiny", "b" * 40, temperature=0.5)
    put(shelf, "someone/small", "c" * 40, temperature=0.7)
    shutil.copytree(MLC, shelf.folder / "by-hand")
    hob = start(data_dir, ready=False, HOB_MODEL="absent")
    yield hob
    hob.stop()
    assert not hob.complaints(), hob.complaints()


@pytest.fixture
def theirs(other: Hob) -> Shelf:
    """The library of the other Hob."""
    return Shelf(other.data_dir / "models")


def test_the_library_is_listed(other: Hob, theirs: Shelf) -> None:
    """Every model that has a manifest, by the name that asks for it."""
    status, told = other.get("/api/library")
    assert status == 200
    assert {model["reference"] for model in told["models"]} == {
        entry.reference for entry in theirs.entries() if entry.manifest
    }
    by_name = {model["reference"]: model for model in told["models"]}
    assert by_name["tiny"]["version"] == theirs.find("tiny").version
    assert by_name["tiny"]["manifest"]["origin"]["revision"] == "b" * 40


@pytest.mark.parametrize("name", ["tiny", "someone/small", "tiny@aaaa"])
def test_a_model_is_copied(adding: Adding, other: Hob, theirs: Shelf, name: str) -> None:
    """Every file is compared, and origin, revision and licence stay those of the first Hob."""
    entry = adding(f"{name}@127.0.0.1:{other.port}")
    source = theirs.find(name)
    assert entry.version == source.version
    assert entry.name == source.name
    assert entry.manifest
    assert source.manifest
    assert entry.manifest.origin == source.manifest.origin
    assert verify(entry) == []


def test_a_copy_goes_on_where_it_was_stopped(adding: Adding, other: Hob) -> None:
    """The other Hob sends the rest of a file, by range."""

    def stop() -> None:
        raise KeyboardInterrupt

    source = f"tiny@{other.url}"
    adding.at = {"fetching tokenizer.json": stop}
    with pytest.raises(KeyboardInterrupt):
        adding(source)
    assert adding.shelf.entries() == []
    (here,) = adding.shelf.folder.glob(".incoming/*/fetched/params_shard_0.bin")
    half = here.stat().st_size // 2
    kept = here.read_bytes()[:half]
    here.unlink()
    here.with_name(f"{here.name}.part").write_bytes(kept)
    adding.at = {}
    adding.steps.clear()
    assert verify(adding(source)) == []


def test_a_file_that_is_damaged_there(adding: Adding, other: Hob, theirs: Shelf) -> None:
    """The copy is refused with the file's name; nothing of it is kept."""
    entry = put(theirs, "worn-out", top_p=0.5)
    damage(entry.path / "params_shard_0.bin")
    with pytest.raises(DamagedError, match=r"params_shard_0\.bin"):
        adding(f"worn-out@127.0.0.1:{other.port}")
    assert adding.shelf.entries() == []


@pytest.mark.parametrize("name", ["nobody", "by-hand", "tiny@ffff"])
def test_what_cannot_be_copied(client: httpx.Client, other: Hob, name: str) -> None:
    """Unknown models, and those without a manifest, are refused with what there is."""
    with pytest.raises(UnknownModelError, match=name) as caught:
        look(client, Peer(name, f"127.0.0.1:{other.port}"), "")
    assert "someone/small" in caught.value.hint


def test_a_server_that_is_no_hob(client: httpx.Client, server: Hub) -> None:
    """Whatever else answers there, it is said."""
    with pytest.raises(HobError, match="127"):
        look(client, Peer("tiny", server.url), "")


def test_a_wrong_key(client: httpx.Client, other: Hob) -> None:
    """Behind a proxy nobody is local: without a key, or with a wrong one, nothing is told."""
    strangers = httpx.Client(headers={"via": "1.1 proxy"})
    with strangers, pytest.raises(AuthenticationError):
        look(strangers, Peer("tiny", other.url), "hob_wrong")
    key = run_hob(other.data_dir, "key", "add", "kitchen").stdout.strip()
    with httpx.Client(headers={"via": "1.1 proxy"}) as known:
        assert look(known, Peer("tiny", other.url), key)[0].name == "tiny"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("http://192.168.1.5:8080/", "http://192.168.1.5:8080"),
        ("https://hob.example.org/models", "https://hob.example.org"),
        ("192.168.1.5:9000", "http://192.168.1.5:9000"),
        ("192.168.1.5", "http://192.168.1.5:8080"),
        ("fe80::1", "http://[fe80::1]:8080"),
        ("[fe80::1]:80", "http://[fe80::1]:80"),
        ("kitchen:8080", "http://kitchen:8080"),
    ],
)
def test_addresses(host: str, url: str) -> None:
    """A name or address becomes a URL; without a port it is Hob's own."""
    assert address(host) == url


@pytest.mark.parametrize(
    "host", ["", "bad host", "http://", "http://[", "[::1", "a:b", "hob:99999", "hob/../x", "\0", "x" * 300]
)
def test_hosts_that_are_none(client: httpx.Client, host: str) -> None:
    """Whatever is given for a host, there is a line that says what is wrong with it."""
    with pytest.raises(DownloadError):
        look(client, Peer("tiny", host), "", QUICK)


def test_a_name_that_nobody_answers_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A .local name is looked for on the network, and `hob discover` is the next step."""
    monkeypatch.setattr("appliance.library.peer.LISTEN", 0.1)
    with pytest.raises(DownloadError, match=r"hob-77\.local") as caught:
        address("hob-77.local")
    assert "hob discover" in caught.value.hint


@pytest.mark.parametrize(
    "path",
    [
        "tiny/nothing.bin",
        "tiny/hob-model.json",
        "tiny/..%2f..%2fhob.db",
        "tiny/../../hob.db",
        "../hob.db/x",
        "..%2f..%2f..%2fetc/passwd",
        "%2fetc/passwd",
        "nobody/tokenizer.json",
        "by-hand/tokenizer.json",
        "tiny@ffff/tokenizer.json",
        "tiny/tokenizer.json%00",
        "tiny/",
    ],
)
def test_nothing_outside_the_library_is_given(other: Hob, path: str) -> None:
    """Only files that a manifest lists are sent, whatever the address says."""
    assert httpx.get(f"{other.url}/api/library/{path}").status_code in (401, 404)
    # As it stands, without a client tidying the dots away.
    raw = httpx.Request("GET", other.url)
    raw.url = raw.url.copy_with(raw_path=f"/api/library/{path}".encode())
    with httpx.Client() as client:
        assert client.send(raw).status_code in (401, 404)


def test_ranges_and_tags(other: Hob, theirs: Shelf) -> None:
    """A file has its SHA-256 as tag, and a part of it comes only while the tag is the same."""
    entry = theirs.find("tiny")
    assert entry.manifest
    file = entry.manifest.file("tokenizer.json")
    assert file
    url = f"{other.url}/api/library/{quote(f'tiny@{entry.version}')}/tokenizer.json"
    content = (MLC / "tokenizer.json").read_bytes()
    whole = httpx.get(url)
    assert whole.content == content
    tag = whole.headers["etag"]
    assert tag == f'"{file.sha256}"'
    part = httpx.get(url, headers={"range": "bytes=100-", "if-range": tag})
    assert (part.status_code, part.content) == (206, content[100:])
    changed = httpx.get(url, headers={"range": "bytes=100-", "if-range": '"other"'})
    assert (changed.status_code, changed.content) == (200, content)
    assert httpx.get(url, headers={"range": f"bytes={len(content)}-"}).status_code == 416


def test_links_are_not_followed(other: Hob, theirs: Shelf, tmp_path: Path) -> None:
    """A file that somebody replaced by a link is not sent."""
    entry = put(theirs, "linked", top_p=0.6)
    (tmp_path / "secret").write_text("secret")
    (entry.path / "tokenizer.json").unlink()
    (entry.path / "tokenizer.json").symlink_to(tmp_path / "secret")
    answer = httpx.get(f"{other.url}/api/library/linked/tokenizer.json")
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_the_command_copies(other: Hob, tmp_path: Path) -> None:
    """`hob model copy NAME --from HOST` reports progress as JSON lines and leaves a model that is sound."""
    arguments = ("model", "copy", "tiny", "--from", f"127.0.0.1:{other.port}", "--as", "mine")
    done = run_hob(tmp_path, *arguments, "--no-compile", "--json", HOB_API_KEY="not needed from here")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["plan"]["name"] == "mine"
    assert lines[-1]["model"] == "mine"
    assert any(line.get("total") for line in lines)
    assert run_hob(tmp_path, "model", "verify", "mine").stdout == "mine is sound.\n"
