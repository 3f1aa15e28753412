"""The models on disk: found, described, checked, compiled."""

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from appliance.config import load_settings
from appliance.engine.messages import Sampling
from appliance.errors import ModelLoadError, UnknownModelError
from appliance.models import Installed, Models, Verified
from appliance.shipped import GUIDE, GUIDE_DIRECTORY
from tests.appliance.library.test_shelf import put
from tests.service import ENDLESS, GOLDEN, TINY

SOURCE = GOLDEN / "llama3rope"


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Models of a data folder with one model, "tiny", not compiled."""
    add(tmp_path, TINY)
    return Models(load_settings(data_dir=tmp_path, model=TINY))


def add(data_dir: Path, name: str, quantization: str = "q4f16_1") -> Path:
    """Install a copy of a golden model under this name."""
    directory = data_dir / "models" / name
    shutil.copytree(SOURCE / quantization, directory)
    return directory


def change(directory: Path, **fields: Any) -> None:
    """Change fields of a model's configuration."""
    file = directory / "mlc-chat-config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_card_tells_what_a_model_is(models: Models, tmp_path: Path) -> None:
    """Family, format, size and context come from the directory; weights count as the source has them."""
    installed = models.get(TINY)
    card = installed.card
    assert installed.directory == tmp_path / "models" / TINY
    assert (card.name, card.family, card.quantization) == (TINY, "llama", "q4f16_1")
    assert card.bytes == sum(file.stat().st_size for file in installed.directory.glob("*.bin"))
    assert card.context == 1024
    unquantised = add(tmp_path, "plain", "q4f32_1")
    assert unquantised
    assert models.get("plain").card.parameters == card.parameters
    config = json.loads((SOURCE / "hf" / "config.json").read_text())
    hidden, inter, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    per_layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inter + 2 * hidden
    assert card.parameters == config["vocab_size"] * hidden + layers * per_layer + hidden


def test_guide_comes_first_and_says_what_it_is(models: Models) -> None:
    """The built-in model leads the list and carries a note; nothing installed can take its name."""
    if not GUIDE_DIRECTORY.is_dir():
        pytest.skip("the built-in model is not in this checkout")
    first, second = models.list()
    assert (first.name, first.builtin) == (GUIDE, True)
    assert "not a general model" in first.note
    assert (second.name, second.builtin, second.note) == (TINY, False, "")


def test_installed_model_cannot_pose_as_the_guide(models: Models, tmp_path: Path) -> None:
    """A directory with the guide's name is not listed in its place."""
    add(tmp_path, GUIDE)
    assert [card.name for card in models.list() if not card.builtin] == [TINY]


def test_names_with_an_owner(models: Models, tmp_path: Path) -> None:
    """A model in a folder in the models folder is called owner/name; half-made ones are not listed."""
    add(tmp_path, "somebody/small")
    add(tmp_path, ".in-the-making")
    (tmp_path / "models" / "notes").mkdir()
    (tmp_path / "models" / "notes" / "readme.txt").write_text("not a model")
    assert models.get("somebody/small").card.name == "somebody/small"
    assert {card.name for card in models.list() if not card.builtin} == {TINY, "somebody/small"}


def test_models_come_and_go_while_the_service_runs(models: Models, tmp_path: Path) -> None:
    """New directories appear, removed ones vanish, changed ones are read again; unchanged ones are not."""
    assert models.get(TINY) is models.get(TINY)
    directory = add(tmp_path, "second")
    assert models.get("second").card.context == 1024
    change(directory, context_window_size=512)
    assert models.get("second").card.context == 512
    shutil.rmtree(directory)
    with pytest.raises(UnknownModelError, match="'second' is not installed"):
        models.get("second")


def test_context_is_what_settings_allow(models: Models, tmp_path: Path) -> None:
    """A model made for more tokens than the settings reserve has as many as are reserved."""
    add(tmp_path, "large")
    change(tmp_path / "models" / "large", context_window_size=ENDLESS)
    assert models.get("large").card.context == 4096


def test_default_model(models: Models) -> None:
    """No name means the default model."""
    assert models.default == TINY
    assert models.get().card.name == TINY


def test_versions_of_a_model(models: Models, tmp_path: Path) -> None:
    """The bare name means the version added last, from that moment; the others keep names of their own."""
    first = put(models.shelf, "several")
    assert models.get("several").directory == first.path
    second = put(models.shelf, "several", context_window_size=512)
    assert models.get("several").directory == second.path
    assert models.get("several").card.context == 512
    assert models.get(f"several@{first.version}").directory == first.path
    assert models.get(f"several@{second.version[:6]}").directory == second.path
    listed = {card.name for card in models.list() if not card.builtin}
    assert listed == {TINY, "several", f"several@{first.version}"}
    models.shelf.remove(second)
    assert models.get("several").directory == first.path
    with pytest.raises(UnknownModelError):
        models.get("several@ffffff")


@pytest.mark.parametrize("name", ["nobody", "../models/tiny", "/etc", ".", "tiny/", "\0"])
def test_unknown_names_are_refused(models: Models, name: str) -> None:
    """Only names of installed models are known; a name is never used as a path."""
    with pytest.raises(UnknownModelError):
        models.get(name)


def _shorten(directory: Path) -> str:
    (shard,) = directory.glob("params_shard_*.bin")
    shard.write_bytes(shard.read_bytes()[:-1])
    return shard.name


def _forget_tokenizer(directory: Path) -> str:
    (directory / "tokenizer.json").unlink()
    return "tokenizer.json"


def _other_family(directory: Path) -> str:
    change(directory, model_type="mamba")
    return "mamba"


def _odd_temperature(directory: Path) -> str:
    change(directory, temperature="hot")
    return "temperature"


def _no_json(directory: Path) -> str:
    (directory / "mlc-chat-config.json").write_text("{")
    return "mlc-chat-config.json"


@pytest.mark.parametrize(
    "damage",
    [_shorten, _forget_tokenizer, _other_family, _odd_temperature, _no_json],
    ids=lambda f: f.__name__,
)
def test_damaged_model_is_listed_with_its_problem(tmp_path: Path, damage: Any) -> None:
    """A damaged directory stays in the list, with the file or field at fault, and cannot be asked."""
    add(tmp_path, "sound")
    named = damage(add(tmp_path, "broken"))
    models = Models(load_settings(data_dir=tmp_path))
    problems = {card.name: card.problem for card in models.list() if not card.builtin}
    assert problems["sound"] == ""
    assert named in problems["broken"]
    with pytest.raises(ModelLoadError, match=named):
        models.get("broken")


def test_own_sampling_settings(models: Models, tmp_path: Path) -> None:
    """A model is sampled as its configuration says; absent and null fields are off."""
    directory = add(tmp_path, "warm")
    change(directory, temperature=0.5, top_p=0.9, presence_penalty=None)
    assert models.get("warm").defaults == Sampling(temperature=0.5, top_p=0.9)


@pytest.mark.anyio
async def test_library_is_found_where_it_was_compiled(data_dir: Path) -> None:
    """A compiled model's library is found without compiling, its place in the engine's terms."""
    models = Models(load_settings(data_dir=data_dir))
    steps: list[str] = []
    library = await models.library(TINY, lambda step, fraction: steps.append(step))
    assert library.is_file()
    assert steps == []
    installed = models.get(TINY)
    reference = await models.reference(installed)
    assert (reference.directory, reference.library) == (str(installed.directory), str(library))
    assert reference.context == 4096


@pytest.mark.anyio
async def test_failing_compiler_is_explained(models: Models, tmp_path: Path) -> None:
    """What the compiler objects to reaches the caller as one error."""
    (tmp_path / "libraries").write_text("in the way")
    with pytest.raises(ModelLoadError) as caught:
        await models.library(TINY)
    assert caught.value.hint


@pytest.mark.slow
@pytest.mark.anyio
async def test_requests_share_one_compilation(models: Models) -> None:
    """Two callers who need a library at the same time get it from one compilation, with progress."""
    seen: list[float] = []
    first, second = await asyncio.gather(
        models.library(TINY, lambda step, fraction: seen.append(fraction)),
        models.library(TINY, lambda step, fraction: seen.append(-1)),
    )
    assert first == second
    assert seen == sorted(seen)
    assert seen[-1] == 1


@pytest.mark.anyio
async def test_impatient_caller_takes_the_compiler_along(models: Models, tmp_path: Path) -> None:
    """Cancelling ends the compiler's process and leaves no half-made library."""
    under_way = asyncio.Event()
    task = asyncio.create_task(models.library(TINY, lambda step, fraction: under_way.set()))
    async with asyncio.timeout(60):
        await under_way.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((tmp_path / "libraries").glob("*.so"))


def test_installed_is_a_value(models: Models) -> None:
    """Two looks at an unchanged model compare equal."""
    again: Installed = models.get(TINY)
    assert again == models.get(TINY)


def flip_a_bit(directory: Path) -> Path:
    """Damage a weight file as a bad copy does: same size, one bit different."""
    shard = directory / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return shard


@pytest.mark.anyio
async def test_damaged_weights_never_answer(models: Models, tmp_path: Path) -> None:
    """One wrong bit in the weights is found before the model is compiled or loaded, and the file is named."""
    shard = flip_a_bit(tmp_path / "models" / TINY)
    with pytest.raises(ModelLoadError, match=re.escape(str(shard))):
        await models.library(TINY)
    assert not (tmp_path / "libraries").exists()


def test_weights_are_compared_once_until_they_change(tmp_path: Path) -> None:
    """What was compared is remembered over restarts; a changed file is compared again."""
    directory = add(tmp_path, TINY)
    record = tmp_path / "verified.json"
    Verified(record).ensure(directory)
    before = record.stat().st_mtime_ns
    Verified(record).ensure(directory)
    assert record.stat().st_mtime_ns == before
    flip_a_bit(directory)
    with pytest.raises(ModelLoadError, match="is damaged"):
        Verified(record).ensure(directory)


def test_a_damaged_record_only_costs_time(tmp_path: Path) -> None:
    """Without a readable record everything is compared once more."""
    directory = add(tmp_path, TINY)
    record = tmp_path / "verified.json"
    record.write_text("[")
    Verified(record).ensure(directory)
    assert str(directory) in json.loads(record.read_text())


@pytest.mark.anyio
async def test_a_replaced_model_gets_its_own_library(models: Models, tmp_path: Path) -> None:
    """When another model takes a directory's place, the former one's library is not handed out."""
    first = await models.library(TINY)
    shutil.rmtree(tmp_path / "models" / TINY)
    add(tmp_path, TINY, "q4f32_1")
    assert await models.library(TINY) != first
