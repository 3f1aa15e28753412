"""Adding models from everywhere, and everything that goes wrong on the way: the library is as it was then."""

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx2 as httpx
import pytest

from appliance.errors import (
    AuthenticationError,
    ConflictError,
    DamagedError,
    DiskFullError,
    DownloadError,
    HobError,
    InvalidRequestError,
    LibraryError,
    TooLargeForMemoryError,
)
from appliance.library import archive, space
from appliance.library.add import Plan, add, plan
from appliance.library.download import ATTEMPTS
from appliance.library.manifest import Origin
from appliance.library.offer import find
from appliance.library.shelf import INCOMING, Entry, Shelf, describe
from appliance.library.source import parse
from appliance.library.verify import verify
from builder.compile.convert import convert
from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError, FormatError, UnsupportedError
from tests.appliance.library.conftest import MLC, QUICK
from tests.appliance.library.hub import Hub
from tests.builder.checkpoints import CONFIG, llama_tensors, write_checkpoint
from tests.builder.import_.archives import write_pytorch
from tests.builder.import_.exports import write_onnx
from tests.builder.import_.ggml import write_gguf
from tests.builder.import_.models import config_of, tensors_of, write_model

REPOSITORY = "someone/Tiny-q4f16_1-MLC"


class Adding:
    """Adds models to a shelf as the command does, and keeps what was reported."""

    def __init__(self, shelf: Shelf, client: httpx.Client) -> None:
        self.shelf = shelf
        self.client = client
        self.steps: list[tuple[str, float]] = []
        self.planned: Plan | None = None
        self.at: dict[str, Callable[[], None]] = {}

    def __call__(
        self,
        source: str | Path,
        *,
        name: str = "",
        key: str = "",
        force: bool = False,
        quantization: str = "q4f16_1",
    ) -> Entry:
        offer = find(parse(str(source)), self.client, key, QUICK)
        self.planned = plan(offer, name=name, quantization=quantization, context=4096)
        return add(
            self.shelf, offer, self.planned, self.client, convert, self.report, force=force, patience=QUICK
        )

    def report(self, step: str, fraction: float, done: int | None = None, total: int | None = None) -> None:
        self.steps.append((step, fraction))
        for start, act in self.at.items():
            if step.startswith(start):
                act()


@pytest.fixture
def adding(shelf: Shelf, client: httpx.Client) -> Adding:
    """Adds to the empty shelf."""
    return Adding(shelf, client)


@pytest.fixture
def unchanged(shelf: Shelf) -> Iterator[None]:
    """Afterwards the library is as it was: no model, and nothing that would be taken for one."""
    yield
    assert shelf.entries() == []
    visible = [path for path in shelf.folder.glob("*") if not path.name.startswith(".")]
    assert visible == []


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


def test_room_for_what_is_here_already(adding: Adding, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second version needs room for what differs, and no more."""
    files = {path.name: path.read_bytes() for path in MLC.iterdir()}
    server.publish(REPOSITORY, files)
    adding(REPOSITORY)
    server.publish(REPOSITORY, files | {"LICENSE": b"Free."})
    monkeypatch.setattr(space, "free", lambda folder: space.RESERVE + 50_000)
    assert adding(REPOSITORY).current


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


@pytest.mark.parametrize("cached", [False, True])
def test_a_folder_is_copied(adding: Adding, mlc: Path, cached: bool) -> None:
    """An MLC directory comes without what else lies there; in a Hugging Face cache its files are links."""
    (mlc / "notes.txt").write_text("mine")
    (mlc / ".hidden").write_text("mine")
    source = mlc
    if cached:
        blobs, source = mlc.parent / "blobs", mlc.parent / "snapshots" / "Tiny-q4f16_1"
        mlc.rename(blobs)
        source.mkdir(parents=True)
        for file in blobs.iterdir():
            (source / file.name).symlink_to(Path("../../blobs") / file.name)
    entry = adding(source)
    assert entry.reference == "Tiny-q4f16_1"
    assert sorted(path.name for path in entry.path.iterdir()) == sorted(
        [*(path.name for path in MLC.iterdir()), "hob-model.json"]
    )
    assert not any(path.is_symlink() for path in entry.path.iterdir())
    assert verify(entry) == []


def test_a_checkpoint_on_a_stick(adding: Adding, tmp_path: Path) -> None:
    """A folder with a checkpoint is converted where it is, under the name that is asked for."""
    entry = adding(write_checkpoint(tmp_path / "stick"), name="mine", quantization="q4f32_1")
    assert entry.reference == "mine"
    assert MLCDirectory.open(entry.path).quantization == "q4f32_1"


@pytest.mark.parametrize("form", ["gguf", "gguf in parts", "torch", "onnx"])
@pytest.mark.parametrize("place", ["stick", "hub"])
def test_other_forms(adding: Adding, server: Hub, tmp_path: Path, form: str, place: str) -> None:
    """GGUF, PyTorch and ONNX weights become the same model from a stick and from a repository."""
    folder = other_form(tmp_path / "source", form)
    by_hand = convert(folder, tmp_path / "by-hand", "q4f16_1")
    if place == "hub":
        server.publish("someone/model", folder)
        entry = adding("someone/model")
    else:
        entry = adding(folder)
    assert verify(entry) == []
    for shard in by_hand.shards:
        assert (entry.path / shard.name).read_bytes() == (by_hand.path / shard.name).read_bytes()


def other_form(folder: Path, form: str) -> Path:
    """A folder with a model whose weights are not safetensors."""
    config = config_of("llama")
    tensors = tensors_of(config)
    write_model(folder, config, tensors)
    (folder / "model.safetensors").unlink()
    if form == "torch":
        write_pytorch(folder / "pytorch_model.bin", tensors)
    elif form == "onnx":
        write_onnx(folder / "model.onnx", tensors, external=True)
    else:
        for file in folder.iterdir():
            file.unlink()
        divided: dict[str, Any] = {"split_max_tensors": 8} if form == "gguf in parts" else {}
        write_gguf(
            folder / "tiny-Q4_0.gguf", "llama", config, tensors, gguf.GGMLQuantizationType.Q4_0, **divided
        )
    return folder


def test_one_gguf_file(adding: Adding, tmp_path: Path) -> None:
    """A single file is named after itself, without what says how it was packed."""
    file = next(other_form(tmp_path / "source", "gguf").iterdir())
    entry = adding(file)
    assert entry.reference == "tiny-q4f16_1"
    assert entry.manifest
    assert entry.manifest.origin == Origin("file", "tiny-Q4_0.gguf")


@pytest.mark.usefixtures("unchanged")
def test_links_out_of_a_stick(adding: Adding, mlc: Path, tmp_path: Path) -> None:
    """A link that leads out of the folder would make somebody's file part of the model."""
    (tmp_path / "secret").write_text("{}")
    (mlc / "tokenizer_config.json").unlink()
    (mlc / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(LibraryError, match=r"tokenizer_config\.json is a link"):
        adding(mlc)


@pytest.mark.usefixtures("unchanged")
def test_a_copy_that_went_wrong_on_its_way_here(adding: Adding, mlc: Path) -> None:
    """The checksums that the weights came with are compared."""
    shard = mlc / "params_shard_0.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DamagedError, match=r"params_shard_0\.bin is damaged"):
        adding(mlc)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("step", ["copying tensor-cache", "converting"])
def test_a_stick_that_is_pulled_out(adding: Adding, mlc: Path, tmp_path: Path, step: str) -> None:
    """What vanishes while it is read is said, and nothing half is kept."""
    folder = write_checkpoint(tmp_path / "stick", files=2) if step == "converting" else mlc

    def pull_out() -> None:
        for file in folder.glob("*.safetensors"):
            os.truncate(file, 10)  # it is open: reading on fails, as it does on a device that is gone
        shutil.rmtree(folder, ignore_errors=True)

    adding.at = {step: pull_out}
    with pytest.raises((LibraryError, BuildError)):
        adding(folder)


def test_a_hobmodel_file(adding: Adding, tmp_path: Path) -> None:
    """What was exported comes back with origin and licence; the name is the exported one or one's own."""
    kept = describe(MLC, "tiny", Origin("hub", "someone/model", "c0ffee"), "apache-2.0")
    file = tmp_path / "stick.hobmodel"
    archive.write(kept, MLC, file, lambda done: None)
    entry = adding(file)
    assert entry.reference == "tiny"
    assert entry.version == kept.version
    assert entry.manifest
    assert (entry.manifest.origin, entry.manifest.licence) == (kept.origin, "apache-2.0")
    assert adding(file, name="mine").reference == "mine"


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


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", ["model.gguf", "model.hobmodel", "model.bin", "model"])
def test_files_that_are_no_model(adding: Adding, tmp_path: Path, name: str) -> None:
    """Noise is refused by content, whatever its name."""
    (tmp_path / name).write_bytes(os.urandom(2000))
    with pytest.raises((LibraryError, BuildError), match=name):
        adding(tmp_path / name)


@pytest.mark.usefixtures("unchanged")
def test_folders_that_hold_no_model(adding: Adding, tmp_path: Path) -> None:
    """A stick with several exported models says their names."""
    (tmp_path / "stick").mkdir()
    with pytest.raises(LibraryError, match="no weights"):
        adding(tmp_path / "stick")
    (tmp_path / "stick" / "tiny.hobmodel").write_bytes(b"")
    with pytest.raises(LibraryError) as caught:
        adding(tmp_path / "stick")
    assert "tiny.hobmodel" in caught.value.hint


def test_too_large_for_the_memory(adding: Adding, mlc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What never fits is refused before it is fetched, and added when somebody insists."""
    from appliance.hardware.memory import Memory
    from appliance.library import fit

    monkeypatch.setattr(fit, "memory", lambda: Memory(100 * 2**20, 50 * 2**20))
    with pytest.raises(TooLargeForMemoryError, match="does not fit"):
        adding(mlc)
    assert adding.shelf.entries() == []
    assert adding(mlc, force=True).reference == "Tiny-q4f16_1"


@pytest.mark.usefixtures("unchanged")
def test_room_is_looked_for_first(adding: Adding, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how much is missing, and nothing was fetched."""
    server.publish(REPOSITORY, MLC)
    monkeypatch.setattr(space, "free", lambda folder: space.RESERVE + 100_000)
    with pytest.raises(DiskFullError, match="not enough room") as caught:
        adding(REPOSITORY)
    assert "Free 357 kB" in caught.value.hint
    assert server.asked("params_shard_0.bin") == []


def test_leftovers_of_others_give_way(
    adding: Adding, server: Hub, mlc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before there is not enough room, what waits to be gone on with is given up."""
    other = adding.shelf.folder / INCOMING / "other"
    other.mkdir(parents=True)
    monkeypatch.setattr(space, "free", lambda folder: space.RESERVE if other.exists() else 10**9)
    assert adding(mlc).reference == "Tiny-q4f16_1"
    assert not other.exists()


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of its own with three megabytes, none of them reserved."""
    monkeypatch.setattr(space, "RESERVE", 0)
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this system mounts no tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Take all the room there is, as another program may."""
    with (folder / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


@pytest.mark.parametrize("step", ["fetching", "copying", "converting"])
def test_a_disk_that_fills_halfway(
    small_disk: Path,
    client: httpx.Client,
    server: Hub,
    mlc: Path,
    tmp_path: Path,
    step: str,
) -> None:
    """Another program takes the last bytes meanwhile: an error, no half model, and the room is given back."""
    adding = Adding(Shelf(small_disk / "models"), client)
    first = adding(mlc, name="first")
    source: str | Path = mlc
    if step == "fetching":
        source = REPOSITORY
        files = {path.name: path.read_bytes() for path in MLC.iterdir()}
        server.publish(REPOSITORY, files | {"tokenizer.model": os.urandom(500_000)})
    if step == "converting":
        source = write_checkpoint(tmp_path / "stick")
    filler = small_disk / "filler"
    adding.at = {step: lambda: None if filler.exists() else fill(small_disk)}
    with pytest.raises((DiskFullError, BuildError)) as caught:
        adding(source, name="second")
    error = caught.value
    assert isinstance(error, DiskFullError | BuildError)
    assert "full" in str(error) or "space" in error.hint or "room" in str(error)
    filler.unlink()
    (only,) = adding.shelf.entries()
    assert only.version == first.version
    assert verify(only) == []
    assert not list((adding.shelf.folder / INCOMING).iterdir())
    adding.at = {}
    assert verify(adding(source, name="second")) == []


def test_a_full_disk_is_freed_by_removing(small_disk: Path, mlc: Path, client: httpx.Client) -> None:
    """Removing needs no room of its own."""
    shelf = Shelf(small_disk / "models")
    entry = Adding(shelf, client)(mlc)
    fill(small_disk)
    shelf.remove(entry)
    assert shelf.entries() == []
    assert space.free(small_disk) > 400_000


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
