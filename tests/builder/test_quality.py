"""What a weight format costs: the weights measured are those on disk, and the figures mean what they say."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from builder.compile.convert import convert
from builder.compile.mlc import MLCDirectory
from builder.compile.quantise import QUANTISATIONS
from builder.guide.__main__ import main
from builder.guide.forward import Guide
from builder.guide.quality import Text, baseline, bits_on_disk, in_format, log_probabilities, measure
from tests.builder.checkpoints import CONFIG, llama_tensors, write_checkpoint

TEXTS = [Text([1, 2, 3, 4, 5], 2), Text([900, 17, 5], 1), Text([7, 8, 9, 10, 11, 12, 13], 3)]


def checkpoint(path: Path, seed: int) -> Path:
    """A small random checkpoint."""
    return write_checkpoint(path, llama_tensors(CONFIG, seed))


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Guide:
    """A small random guide, unquantised."""
    place = tmp_path_factory.mktemp("guide")
    model = convert(checkpoint(place / "hf", 0), place / "out", "q0f16")
    return Guide.of_checkpoint(model.config["model_config"], place / "hf")


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_weights_are_those_on_disk(name: str, guide: Guide, tmp_path: Path) -> None:
    """What is measured is, bit for bit, what a directory converted to the format holds; so is its size."""
    model = convert(checkpoint(tmp_path / "hf", 0), tmp_path / "out", name)
    read, simulated = Guide.of_directory(model.path), in_format(guide, QUANTISATIONS[name])
    assert read.weights.keys() == simulated.weights.keys()
    for parameter, values in read.weights.items():
        np.testing.assert_array_equal(simulated.weights[parameter], values, err_msg=parameter)
    weights = sum(values.size for values in read.weights.values())
    assert bits_on_disk(guide, QUANTISATIONS[name]) == model.nbytes * 8 / weights


def test_several_texts_at_once_are_each_alone(guide: Guide) -> None:
    """Texts that are computed together do not see each other."""
    together = log_probabilities(guide, TEXTS)
    apart = np.concatenate([log_probabilities(guide, [text]) for text in TEXTS])
    assert together.shape == (3 + 2 + 4, CONFIG["vocab_size"])
    # float32 sums in another order, over logits up to 40; seeing another text would change whole units
    np.testing.assert_allclose(together, apart, atol=5e-3)


def test_figures(guide: Guide) -> None:
    """Perplexity is that of the tokens from `start` on; finer formats diverge less from the baseline."""
    perplexity, found = measure(guide, TEXTS)
    losses = []
    for text in TEXTS:
        cache = guide.start()
        logits = guide.forward(text.ids[: text.start], cache).astype(np.float64)
        for token in text.ids[text.start :]:
            losses.append(np.log(np.exp(logits).sum()) - logits[token])
            logits = guide.forward([token], cache).astype(np.float64)
    assert perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-3)
    divergence = {name: one.divergence for one in found for name in one.formats}
    assert divergence.keys() == QUANTISATIONS.keys()
    assert 0 < divergence["q0f16"] < divergence["q0bf16"] < divergence["q4f16_1"] < divergence["q3f16_1"]
    assert divergence["q4f16_2"] < divergence["q4f16_1"] == divergence["q4f16_0"]
    for one in found:
        assert one.change == pytest.approx(one.perplexity / perplexity - 1)
        assert 0 <= one.agreement <= 1


def test_baseline_is_the_checkpoint_of_this_very_model(tmp_path: Path) -> None:
    """The cycle that the directory was made from is taken, not a later one, and the text names it."""
    for cycle, seed in ((1, 5), (2, 6)):
        checkpoint(tmp_path / f"cycle-{cycle}", seed)
    directory = convert(tmp_path / "cycle-1", tmp_path / "out", "q4f16_1").path
    base = baseline(tmp_path, directory)
    assert base.what.startswith(f"float32 checkpoint {tmp_path / 'cycle-1'}")
    tensors = llama_tensors(CONFIG, 5)
    np.testing.assert_array_equal(base.guide.weights["lm_head.weight"], tensors["lm_head.weight"])


def test_without_a_checkpoint_the_baseline_says_what_it_is(tmp_path: Path) -> None:
    """Stored weights stand in for the checkpoint, plainly named, and their own format shows no loss."""
    directory = convert(checkpoint(tmp_path / "hf", 0), tmp_path / "out", "q4f16_1").path
    base = baseline(tmp_path / "none", directory)
    assert "q4f16_1 itself shows no loss" in base.what
    _, found = measure(base.guide, TEXTS)
    (same,) = (one for one in found if "q4f16_1" in one.formats)
    assert (same.divergence, same.agreement, same.change) == (0, 1, 0)
    assert MLCDirectory.open(directory).quantization == "q4f16_1"


def test_the_command_measures_the_built_in_guide(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every format has a line, as JSON or in a table, after the baseline's."""
    assert main(["quality", "--texts", "3", "--json", "--work", str(tmp_path)]) == 0
    first, *lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["texts"] == 3
    assert first["perplexity"] > 1
    assert {name for line in lines for name in line["formats"]} == QUANTISATIONS.keys()
    assert main(["quality", "--texts", "3", "--work", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in QUANTISATIONS)
