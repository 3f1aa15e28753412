"""Adding models from sticks and folders, in every form that Hob reads."""

import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest

from appliance.errors import (
    DamagedError,
    LibraryError,
)
from appliance.library import archive
from appliance.library.manifest import Origin
from appliance.library.shelf import describe
from appliance.library.verify import verify
from builder.compile.convert import convert
from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError
from tests.appliance.library.adding import MLC, Adding
from tests.appliance.library.hub import Hub
from tests.builder.checkpoints import write_checkpoint
from tests.builder.import_.archives import write_pytorch
from tests.builder.import_.exports import write_onnx
from tests.builder.import_.ggml import write_gguf
from tests.builder.import_.models import config_of, tensors_of, write_model


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
