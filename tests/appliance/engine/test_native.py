"""The native engine runs compiled models as independent programs do, and refuses what it cannot run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.engine import weights
from appliance.engine.native import Floats, NativeModel
from appliance.engine.probe import probe
from appliance.engine.weights import Footprint
from appliance.errors import ContextLengthError, InvalidRequestError, ModelLoadError
from builder.compile.mlc import CONFIG
from builder.compile.targets import LEVELS, cpu_features, machine
from tests.compiled import REFERENCES, Reference, golden, library

RUNNABLE = [
    f"cpu-{level.isa}"
    for level in LEVELS
    if level.arch == machine() and cpu_features().issuperset(level.requires)
]


@contextmanager
def loaded(
    quantization: str = "q4f32_1", kernels: str = "exact", target: str = "auto", context: int = 512
) -> Iterator[NativeModel]:
    """A golden model, ready."""
    directory = golden(quantization)
    model = NativeModel.load(directory, library(directory, kernels, target), context=context)
    yield model
    model.close()


@pytest.fixture(scope="module")
def model() -> Iterator[NativeModel]:
    """The exact q4f32_1 model; tests remove the sequences they add."""
    with loaded() as exact:
        yield exact


def prefilled(model: NativeModel, ids: list[int], *, seq: int = 0) -> Floats:
    """Logits after a prompt, from a sequence that is gone afterwards."""
    model.add_sequence(seq)
    logits = model.prefill(seq, ids)
    model.remove_sequence(seq)
    return logits


def greedy(model: NativeModel, reference: Reference) -> list[int]:
    """As many tokens as the reference has."""
    model.add_sequence(0)
    ids = [int(model.prefill(0, reference.prompt).argmax())]
    while len(ids) < len(reference.greedy_ids):
        ids.append(int(model.decode([0], [ids[-1]])[0].argmax()))
    model.remove_sequence(0)
    return ids


def forced(model: NativeModel, reference: Reference) -> list[Floats]:
    """Logits of every step when the reference's own tokens are fed."""
    model.add_sequence(0)
    steps = [model.prefill(0, reference.prompt)]
    steps += [model.decode([0], [token])[0] for token in reference.greedy_ids[:-1]]
    model.remove_sequence(0)
    return steps


@pytest.mark.parametrize("quantization", ["q4f32_1", "q4f16_1", "q0f16", "q0f32"])
def test_exact_kernels_give_the_reference(quantization: str) -> None:
    """With float activations all greedy tokens are the reference's, and logits differ by less than 1e-3."""
    tolerance = 1e-3 if quantization != "q0f32" else 0.2  # stored as bfloat16, the reference has float32
    with loaded(quantization) as model:
        for reference in REFERENCES[quantization]:
            assert np.abs(prefilled(model, reference.prompt) - reference.logits).max() < tolerance
            if quantization != "q0f32":
                assert greedy(model, reference) == reference.greedy_ids


@pytest.mark.parametrize(
    ("quantization", "target"), [("q4f32_1", RUNNABLE[0]), *(("q4f16_1", target) for target in RUNNABLE)]
)
def test_fast_kernels_choose_what_their_error_allows(quantization: str, target: str) -> None:
    """The error that int8 activations make is small, and no token with a wider lead changes because of it."""
    checked = 0
    with loaded(quantization) as exact, loaded(quantization, "fast", target) as fast:
        for reference in REFERENCES[quantization]:
            wanted, got = prefilled(exact, reference.prompt), prefilled(fast, reference.prompt)
            error = float(np.abs(got - wanted).max())
            assert np.linalg.norm(got - wanted) < 0.04 * np.linalg.norm(wanted)
            steps = forced(fast, reference)
            for logits, token, gap in zip(steps, reference.greedy_ids, reference.gaps, strict=True):
                if gap > error:
                    assert int(logits.argmax()) == token
                    checked += 1
    assert checked >= 40  # of 64: the comparison has not become empty


@pytest.mark.parametrize("target", [target for target in RUNNABLE if target != RUNNABLE[0]])
def test_exact_kernels_agree_on_every_level(target: str) -> None:
    """Lower instruction-set levels compute the same."""
    with loaded("q4f16_1", "exact", target) as model:
        for reference in REFERENCES["q4f16_1"]:
            assert np.abs(prefilled(model, reference.prompt) - reference.logits).max() < 1e-3


def test_prefill_in_pieces_is_prefill_at_once(model: NativeModel) -> None:
    """A prompt appended in pieces of any size gives the logits of the whole."""
    reference = REFERENCES["q4f32_1"][1]
    for size in (1, 16, 49):
        model.add_sequence(0)
        for start in range(0, len(reference.prompt), size):
            logits = model.prefill(0, reference.prompt[start : start + size])
        model.remove_sequence(0)
        assert np.abs(logits - reference.logits).max() < 1e-3


def test_prompts_longer_than_a_chunk_are_cut(model: NativeModel) -> None:
    """A prompt of several prefill chunks gives the logits that decoding it token by token gives."""
    ids = (REFERENCES["q4f32_1"][1].prompt * 3)[: model.prefill_chunk + 40]
    model.add_sequence(0)
    for token in ids:
        one_by_one = model.decode([0], [token])[0]
    assert model.length(0) == len(ids)
    model.remove_sequence(0)
    assert np.abs(prefilled(model, ids) - one_by_one).max() < 1e-3


def test_sequences_decoded_together_do_not_touch(model: NativeModel) -> None:
    """Two sequences in one batch get the logits that each gets alone."""
    first, second = REFERENCES["q4f32_1"]
    model.add_sequence(7)
    model.add_sequence(3)
    ids = [[int(model.prefill(seq, r.prompt).argmax())] for seq, r in ((7, first), (3, second))]
    while len(ids[0]) < 32:
        logits = model.decode([7, 3], [ids[0][-1], ids[1][-1]])
        for answer, row in zip(ids, logits, strict=True):
            answer.append(int(row.argmax()))
    model.remove_sequence(7)
    model.remove_sequence(3)
    assert ids == [first.greedy_ids, second.greedy_ids]


def test_a_fork_goes_its_own_way(model: NativeModel) -> None:
    """A fork shares the past; what either appends stays its own."""
    short, long = REFERENCES["q4f32_1"]
    other = short.prompt[0]
    wanted = prefilled(model, [*long.prompt[:100], other])
    model.add_sequence(0)
    model.prefill(0, long.prompt[:120])
    model.fork_sequence(0, 1, 100)
    assert np.abs(model.decode([1], [other])[0] - wanted).max() < 1e-3
    assert np.abs(model.prefill(0, long.prompt[120:]) - long.logits).max() < 1e-3
    model.remove_sequence(0)
    model.remove_sequence(1)


def test_truncated_tokens_are_forgotten(model: NativeModel) -> None:
    """After a cut a sequence goes on as if the rest had never been."""
    long = REFERENCES["q4f32_1"][1]
    model.add_sequence(0)
    model.prefill(0, [*long.prompt[:90], 5, 6, 7])
    model.truncate(0, 90)
    assert np.abs(model.prefill(0, long.prompt[90:]) - long.logits).max() < 1e-3
    model.remove_sequence(0)


def test_bad_requests_change_nothing(model: NativeModel) -> None:
    """Wrong ids, sequences and lengths are refused by number, and the sequence goes on."""
    short = REFERENCES["q4f32_1"][0]
    model.add_sequence(0)
    model.prefill(0, short.prompt[:3])
    for seqs, ids in [([0], [1024]), ([0], [-1]), ([1], [5]), ([0, 0], [5, 5]), ([0], [])]:
        with pytest.raises(InvalidRequestError):
            model.decode(seqs, ids)
    with pytest.raises(InvalidRequestError, match="1024"):
        model.prefill(0, [5, 1024])
    with pytest.raises(ContextLengthError, match=r"3 tokens and 510 more .* 512"):
        model.prefill(0, [5] * 510)
    with pytest.raises(InvalidRequestError, match="exists"):
        model.add_sequence(0)
    assert model.length(0) == 3
    assert np.abs(model.prefill(0, short.prompt[3:]) - short.logits).max() < 1e-3
    model.remove_sequence(0)
    with pytest.raises(InvalidRequestError, match="no sequence 0"):
        model.remove_sequence(0)


def test_sequences_end_where_memory_was_reserved(model: NativeModel) -> None:
    """Every reserved sequence can be filled to its full context; one more sequence is refused."""
    assert model.max_sequences == 4
    for seq in range(4):
        model.add_sequence(seq)
        model.prefill(seq, [9] * 512)
    with pytest.raises(InvalidRequestError, match="all 4"):
        model.add_sequence(4)
    with pytest.raises(ContextLengthError):
        model.decode([0], [9])
    for seq in range(4):
        model.remove_sequence(seq)


def untie(source: Path, out: Path) -> None:
    """Give a tied model an output matrix of its own, equal to the embedding."""
    shutil.copytree(source, out)
    for name in ("tensor-cache.json", CONFIG):
        (out / name).write_text((source / name).read_text().replace('s": true', 's": false'))
    cache = json.loads((out / "tensor-cache.json").read_text())
    shard = cache["records"][0]
    twins = [r for r in shard["records"] if r["name"].startswith("model.embed_tokens.")]
    with (out / shard["dataPath"]).open("r+b") as file:
        data = file.read()
        for twin in twins:
            name = twin["name"].replace("model.embed_tokens", "lm_head")
            shard["records"].append({**twin, "name": name, "byteOffset": file.seek(0, 2)})
            file.write(data[twin["byteOffset"] : twin["byteOffset"] + twin["nbytes"]])
        shard["nbytes"] = file.tell()
    (out / "tensor-cache.json").write_text(json.dumps(cache))


@pytest.mark.parametrize("kernels", ["exact", "fast"])
def test_an_output_matrix_of_its_own(tmp_path: Path, kernels: str) -> None:
    """A model whose output matrix is stored apart computes with that one."""
    untie(golden("q4f16_1"), tmp_path / "untied")
    model = NativeModel.load(tmp_path / "untied", library(tmp_path / "untied", kernels), context=256)
    with loaded("q4f16_1", kernels) as tied:
        for reference in REFERENCES["q4f16_1"]:
            assert np.array_equal(prefilled(model, reference.prompt), prefilled(tied, reference.prompt))
    model.close()


def load(directory: Path, path: Path) -> None:
    """Load and forget."""
    NativeModel.load(directory, path, context=64).close()


@pytest.fixture
def copied(tmp_path: Path) -> tuple[Path, Path]:
    """A model directory and its library, free to be damaged."""
    directory, path = golden("q4f32_1"), library(golden("q4f32_1"))
    shutil.copytree(directory, tmp_path / "model")
    for file in (path, path.with_name(path.name + ".json")):
        shutil.copy(file, tmp_path)
    return tmp_path / "model", tmp_path / path.name


def test_a_damaged_library_is_refused(copied: tuple[Path, Path]) -> None:
    """One changed byte, and the library is not loaded; the message names it."""
    directory, path = copied
    load(directory, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelLoadError, match=path.name):
        load(directory, path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("structure", {}), ("quantization", "q4f16_1"), ("requires", ["no-such-feature"]), ("format", 99)],
)
def test_a_foreign_library_is_refused(copied: tuple[Path, Path], field: str, value: Any) -> None:
    """A library for another model, format or CPU is not loaded."""
    directory, path = copied
    manifest = path.with_name(path.name + ".json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), field: value}))
    with pytest.raises(ModelLoadError, match=path.name):
        load(directory, path)


def test_a_library_without_manifest_is_refused(copied: tuple[Path, Path]) -> None:
    """Nothing vouches for it."""
    directory, path = copied
    path.with_name(path.name + ".json").unlink()
    with pytest.raises(ModelLoadError, match="manifest"):
        load(directory, path)


def test_a_directory_with_other_tensors_is_refused(copied: tuple[Path, Path]) -> None:
    """A tensor of another name or shape is named before anything is computed."""
    directory, path = copied
    cache = directory / "tensor-cache.json"
    cache.write_text(cache.read_text().replace("model.norm.weight", "model.other.weight"))
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight is missing"):
        load(directory, path)


def test_a_truncated_shard_is_refused(copied: tuple[Path, Path]) -> None:
    """A shard shorter than its description is named."""
    directory, path = copied
    with (directory / "params_shard_0.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ModelLoadError, match="params_shard_0"):
        load(directory, path)


def test_what_does_not_fit_memory_is_refused_with_numbers() -> None:
    """Fewer sequences are reserved where memory is short, and a model that fits none is refused."""
    mib = 2**20
    need = Footprint(weights=1000 * mib, loading=1200 * mib, scratch=160 * mib, kv_per_token=mib // 4)

    def fitting(available: int) -> int:
        return weights.fit("m", need, available=available * mib, context=1000, max_sequences=4)

    # 1008 tokens are 63 whole pages: 252 MiB for each sequence.
    base = 1160 + weights.RESERVE // mib
    assert fitting(base + 4 * 252) == 4
    assert fitting(base + 4 * 252 - 1) == 3
    assert fitting(base + 252) == 1
    numbers = rf"{base + 252} MiB \(1000 of them weights.* {base + 251} MiB are available"
    with pytest.raises(ModelLoadError, match=numbers):
        fitting(base + 252 - 1)
    assert need.total(0) == 1200 * mib + weights.RESERVE  # loading takes more than running


def test_the_engine_is_small_and_has_no_compiler() -> None:
    """A process that loads and runs a model needs less than 120 MB beyond weights and KV cache, and no TVM
    package.
    """
    code = """
import sys, psutil
from pathlib import Path
from appliance.engine.native import NativeModel
model = NativeModel.load(Path(sys.argv[1]), Path(sys.argv[2]), context=512)
model.add_sequence(0)
model.prefill(0, [5] * 500)
model.decode([0], [5])
print(psutil.Process().memory_info().rss, "tvm" in sys.modules, "torch" in sys.modules)
"""
    directory = golden("q4f16_1")
    command = [sys.executable, "-c", code, str(directory), str(library(directory, "fast"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rss, tvm, torch = done.stdout.split()
    assert int(rss) < 120e6
    assert (tvm, torch) == ("False", "False")


def test_probe_reports_the_reference() -> None:
    """The probe's greedy ids are the reference's; its best logits are in order and belong to them."""
    directory, reference = golden("q4f32_1"), REFERENCES["q4f32_1"][0]
    result = probe(directory, library(directory), reference.prompt, 32)
    assert result.greedy_ids == reference.greedy_ids
    assert [best[0].token for best in result.top] == reference.greedy_ids
    for best, gap in zip(result.top, reference.gaps, strict=True):
        logits = [score.logit for score in best]
        assert len(logits) == 5
        assert logits == sorted(logits, reverse=True)
        assert logits[0] - logits[1] == pytest.approx(gap, abs=1e-3)
    assert json.loads(json.dumps(result.describe()))["greedy_ids"] == reference.greedy_ids


def test_probe_refuses_what_does_not_fit() -> None:
    """Nothing to do, and more than the model's context."""
    directory = golden("q4f32_1")
    with pytest.raises(InvalidRequestError):
        probe(directory, library(directory), [1], 0)
    with pytest.raises(ContextLengthError, match="1024"):
        probe(directory, library(directory), [1] * 1000, 25)
