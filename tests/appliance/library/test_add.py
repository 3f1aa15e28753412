"""Adding models from the hub and by address, and everything that goes wrong on the way."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from appliance.errors import (
    AuthenticationError,
    ConflictError,
    DamagedError,
    DownloadError,
    HobError,
    InvalidRequestError,
    TooLargeForMemoryError,
)
from appliance.library import archive
from appliance.library.download import ATTEMPTS
from appliance.library.manifest import Origin
from appliance.library.shelf import INCOMING, describe
from appliance.library.verify import verify
from builder.compile.convert import convert
from builder.compile.mlc import MLCDirectory
from builder.errors import FormatError, UnsupportedError
from tests.appliance.library.adding import MLC, REPOSITORY, Adding
from tests.appliance.library.hub import Hub
from tests.builder.checkpoints import CONFIG, llama_tensors, write_checkpoint


def checkpoint_files(tmp_path: Path) -> dict[str, bytes]:
    """A checkpoint in two files, as a repository has it, with things that are not needed."""
    folder = write_checkpoint(tmp_path / "checkpoint", files=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {"README.md": b"#" * 5000, "pytorch_model.bin": b"x" * 9000, "LICENSE": b"Free."}


def test_an_mlc_repository_comes_as_it_is(adding: Adding, server: Hub) -> None:
    """The files are fetched once, compared, and kept with origin, commit and licence."""
    commit = server.publish(REPOSITORY, MLC)
    entry = adding(REPOSITORY)
    assert entry.reference == "Tiny-q4f16_1"
    assert entry.manifest
    assert entry.manifest.origin == Origin("hub", REPOSITORY, commit)
    assert entry.manifest.licence == "apache-2.0"
    assert MLCDirectory.open(entry.path).tensors == MLCDirectory.open(MLC).tensors
    assert verify(entry) == []
    assert adding.planned
    assert adding.planned.fetch == sum(path.stat().st_size for path in MLC.iterdir())
    fractions = [fraction for _, fraction in adding.steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_a_checkpoint_is_fetched_and_converted(adding: Adding, server: Hub, tmp_path: Path) -> None:
    """Only the files that are needed come; the model is the same as a conversion of the folder by hand."""
    files = checkpoint_files(tmp_path)
    server.publish("someone/Small-HF", files)
    entry = adding("someone/Small-HF")
    assert entry.reference == "Small-q4f16_1"
    fetched = {path.rpartition("/")[2] for path, _ in server.requests if "/cdn/" in path}
    assert fetched == set(files) - {"README.md", "pytorch_model.bin"}
    by_hand = convert(tmp_path / "checkpoint", tmp_path / "by-hand", "q4f16_1")
    for shard in by_hand.shards:
        assert (entry.path / shard.name).read_bytes() == (by_hand.path / shard.name).read_bytes()
    assert (entry.path / "LICENSE").read_bytes() == files["LICENSE"]
    assert not list((adding.shelf.folder / INCOMING).iterdir())


def test_a_revision_is_pinned(adding: Adding, server: Hub, tmp_path: Path) -> None:
    """A tag names its commit; what moves under a branch meanwhile is not mixed in."""
    old = server.publish(REPOSITORY, MLC, "v1")
    new = {path.name: path.read_bytes() for path in MLC.iterdir()} | {"LICENSE": b"Other."}
    server.publish(REPOSITORY, new, "main")
    assert adding(f"{REPOSITORY}@v1").version != adding(REPOSITORY).version
    assert adding.shelf.find(f"Tiny-q4f16_1@{old[:8]}").version
    assert len(adding.shelf.versions("Tiny-q4f16_1")) == 2


def test_what_two_versions_share_is_fetched_once(adding: Adding, server: Hub) -> None:
    """A second version brings only what differs, and takes room only for that."""
    server.publish(REPOSITORY, MLC)
    first = adding(REPOSITORY)
    server.requests.clear()
    server.publish(
        REPOSITORY, {path.name: path.read_bytes() for path in MLC.iterdir()} | {"LICENSE": b"Free."}
    )
    second = adding(REPOSITORY)
    assert server.asked("params_shard_0.bin") == []
    assert (second.path / "params_shard_0.bin").samefile(first.path / "params_shard_0.bin")


def test_adding_goes_on_where_it_was_stopped(adding: Adding, server: Hub) -> None:
    """After a break-off nothing that is here is fetched again."""
    server.publish(REPOSITORY, MLC)
    server.faults["tokenizer.json"] = ["truncate"] * ATTEMPTS
    with pytest.raises(DownloadError):
        adding(REPOSITORY)
    assert adding.shelf.entries() == []
    server.requests.clear()
    assert verify(adding(REPOSITORY)) == []
    assert server.asked("params_shard_0.bin") == []
    assert "range" in server.asked("tokenizer.json")[0]


def test_stopped_by_a_person(adding: Adding, server: Hub) -> None:
    """Ctrl-C while fetching or converting leaves the library as it was, and the next attempt works."""
    server.publish("someone/Small", checkpoint_files(adding.shelf.folder.parent.parent))

    def stop() -> None:
        raise KeyboardInterrupt

    for step in ("fetching model-00002", "converting"):
        adding.at = {step: stop}
        with pytest.raises(KeyboardInterrupt):
            adding("someone/Small")
        assert adding.shelf.entries() == []
        (folder,) = (adding.shelf.folder / INCOMING).iterdir()
        assert [path.name for path in folder.iterdir()] == ["fetched"]
    adding.at = {}
    assert verify(adding("someone/Small")) == []


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("stall", DownloadError),
        ("truncate", DownloadError),
        ("longer", DownloadError),
        ("shorter", DownloadError),
        ("corrupt", DamagedError),
        ("change", DamagedError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, DownloadError),
        (429, DownloadError),
        (503, DownloadError),
    ],
)
def test_what_goes_wrong_on_the_way(adding: Adding, server: Hub, fault: Any, error: type[HobError]) -> None:
    """Whatever the server does to a file, the error names it and the library is as it was."""
    server.publish(REPOSITORY, MLC)
    server.faults["params_shard_0.bin"] = [fault] * ATTEMPTS
    with pytest.raises(error, match=r"params_shard_0\.bin") as caught:
        adding(REPOSITORY)
    assert caught.value.hint


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("source", "fault", "error", "message"),
    [
        ("someone/nothing", None, DownloadError, "has no someone/nothing"),
        (f"{REPOSITORY}@v9", None, DownloadError, "no revision 'v9'"),
        (REPOSITORY, 500, DownloadError, "500"),
        (REPOSITORY, 429, DownloadError, "429"),
    ],
)
def test_what_the_hub_says(
    adding: Adding, server: Hub, source: str, fault: Any, error: type[HobError], message: str
) -> None:
    """Unknown repositories and revisions, and a hub that does not work, are said in one line."""
    server.publish(REPOSITORY, MLC)
    server.faults["api"] = [fault] * ATTEMPTS if fault else []
    with pytest.raises(error, match=message):
        adding(source)


def test_a_busy_hub_is_asked_again(adding: Adding, server: Hub) -> None:
    """A hub that is busy for a moment is no failure."""
    server.publish(REPOSITORY, MLC)
    server.faults["api"] = [429, 503]
    assert adding(REPOSITORY).reference == "Tiny-q4f16_1"


@pytest.mark.usefixtures("unchanged")
def test_gated_without_a_token(adding: Adding, server: Hub) -> None:
    """The licence's page and the way to give a token are in the hint, and nothing is fetched."""
    server.publish(REPOSITORY, MLC)
    server.gated.add(REPOSITORY)
    with pytest.raises(AuthenticationError, match="licence") as caught:
        adding(REPOSITORY)
    assert f"{server.url}/{REPOSITORY}" in caught.value.hint
    assert "--key-file" in caught.value.hint
    assert not any("/resolve/" in path for path, _ in server.requests)


@pytest.mark.usefixtures("unchanged")
def test_gated_with_a_wrong_token(adding: Adding, server: Hub) -> None:
    """A token that does not open the repository is said to, and never shown."""
    server.publish(REPOSITORY, MLC)
    server.gated.add(REPOSITORY)
    with pytest.raises(AuthenticationError, match="licence") as caught:
        adding(REPOSITORY, key="hf_wrong")
    assert f"{server.url}/{REPOSITORY}" in caught.value.hint
    assert "hf_wrong" not in caught.value.explanation


def test_gated_with_a_token(adding: Adding, server: Hub) -> None:
    """With the right token a gated repository is like any other, and the manifest does not keep it."""
    server.publish(REPOSITORY, MLC)
    server.gated.add(REPOSITORY)
    entry = adding(REPOSITORY, key=server.token)
    assert server.token not in (entry.path / "hob-model.json").read_text()


@pytest.mark.usefixtures("unchanged")
def test_families_that_hob_does_not_know(adding: Adding, server: Hub, tmp_path: Path) -> None:
    """They are refused before a weight is fetched."""
    files = checkpoint_files(tmp_path)
    files["config.json"] = b'{"model_type": "mamba"}'
    server.publish("someone/mamba", files)
    with pytest.raises(UnsupportedError, match="mamba"):
        adding("someone/mamba")
    assert server.asked("model-00001-of-00002.safetensors") == []


@pytest.mark.usefixtures("unchanged")
def test_formats_that_hob_does_not_know(adding: Adding, server: Hub, tmp_path: Path) -> None:
    """Unknown formats, of a directory or to convert to, are refused before anything is fetched."""
    files = {path.name: path.read_bytes() for path in MLC.iterdir()}
    config = json.loads(files["mlc-chat-config.json"]) | {"quantization": "e4m3_e4m3_f16"}
    server.publish(REPOSITORY, files | {"mlc-chat-config.json": json.dumps(config).encode()})
    with pytest.raises(UnsupportedError, match="e4m3"):
        adding(REPOSITORY)
    server.publish("someone/Small", checkpoint_files(tmp_path))
    with pytest.raises(InvalidRequestError, match="int4"):
        adding("someone/Small", quantization="int4")
    assert not any("params" in path or "safetensors" in path for path, _ in server.requests)


@pytest.mark.usefixtures("unchanged")
def test_weights_that_are_no_numbers(adding: Adding, server: Hub, tmp_path: Path) -> None:
    """NaN in a checkpoint ends the conversion with the tensor's name; the useless download goes."""
    tensors = llama_tensors(CONFIG)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    write_checkpoint(tmp_path / "nan", tensors)
    server.publish("someone/nan", tmp_path / "nan")
    with pytest.raises(FormatError, match="up_proj"):
        adding("someone/nan")
    assert list((adding.shelf.folder / INCOMING).iterdir()) == []


def test_files_by_address(adding: Adding, server: Hub, tmp_path: Path) -> None:
    """A .hobmodel file at an address is fetched, then unpacked."""
    kept = describe(MLC, "tiny", Origin("hub", "someone/model", "c0ffee"), "")
    archive.write(kept, MLC, tmp_path / "tiny.hobmodel", lambda done: None)
    commit = server.publish("someone/files", {"tiny.hobmodel": (tmp_path / "tiny.hobmodel").read_bytes()})
    entry = adding(f"{server.url}/someone/files/resolve/{commit}/tiny.hobmodel")
    assert entry.version == kept.version


@pytest.mark.usefixtures("unchanged")
def test_an_address_that_tells_no_length(adding: Adding, server: Hub) -> None:
    """Without a length no disk can be kept free, so it is not begun."""
    commit = server.publish("someone/files", {"a.gguf": b"GGUF" + bytes(9000)})
    server.faults["a.gguf"] = ["chunked"]
    with pytest.raises(DownloadError, match="how large"):
        adding(f"{server.url}/someone/files/resolve/{commit}/a.gguf")


def test_too_large_for_the_memory(adding: Adding, mlc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What never fits is refused before it is fetched, and added when somebody insists."""
    from appliance.hardware.memory import Memory
    from appliance.library import fit

    monkeypatch.setattr(fit, "memory", lambda: Memory(100 * 2**20, 50 * 2**20))
    with pytest.raises(TooLargeForMemoryError, match="does not fit"):
        adding(mlc)
    assert adding.shelf.entries() == []
    assert adding(mlc, force=True).reference == "Tiny-q4f16_1"


def test_two_at_a_time(adding: Adding, server: Hub, client: httpx.Client) -> None:
    """Whoever adds the same model while it is being added is told so; the first one is not disturbed."""
    server.publish(REPOSITORY, MLC)
    caught: list[HobError] = []

    def second() -> None:
        try:
            Adding(adding.shelf, client)(REPOSITORY)
        except HobError as error:
            caught.append(error)

    def start() -> None:
        adding.at = {}
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    adding.at = {"fetching tokenizer.json": start}
    assert verify(adding(REPOSITORY)) == []
    (error,) = caught
    assert isinstance(error, ConflictError)
