"""A compiled library has MLC's functions, with MLC's names, signatures and meaning."""

import numpy as np
import pytest

from builder.compile.mlc import MLCDirectory
from tests.builder.driver import Library, array, tensor
from tests.compiled import GOLDEN, REFERENCES

SHORT, LONG = REFERENCES["q4f32_1"]
HIDDEN, VOCAB = 128, 1024


@pytest.fixture(scope="module")
def lib() -> Library:
    """The exact q4f32_1 library."""
    return Library(GOLDEN / "q4f32_1")


def test_metadata_describes_the_model(lib: Library) -> None:
    """The fields MLC's programs read are there, and `params` are the directory's tensors in MLC's form."""
    metadata, model = lib.metadata, MLCDirectory.open(GOLDEN / "q4f32_1")
    assert metadata["model_type"] == "llama"
    assert metadata["quantization"] == "q4f32_1"
    assert metadata["context_window_size"] == 1024
    assert metadata["prefill_chunk_size"] == 256
    assert metadata["kv_cache"] == {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    assert {p["name"]: (tuple(p["shape"]), p["dtype"]) for p in metadata["params"]} == {
        name: (entry.shape, entry.dtype) for name, entry in model.tensors.items()
    }
    assert set(metadata["memory_usage"]) >= {"embed", "prefill", "decode", "batch_prefill", "batch_decode"}
    # Its largest intermediate result: gate and up projections of a whole chunk.
    assert metadata["memory_usage"]["prefill"] > 256 * 2 * 352 * 4
    assert metadata["memory_usage"]["decode"] < metadata["memory_usage"]["batch_decode"]


def test_prefill_returns_the_last_positions_logits(lib: Library) -> None:
    """Shape [1, 1, V]; every way to ask for the last position's logits gives the same."""
    n, ids = len(SHORT.prompt), SHORT.prompt
    results = []
    for name in ("prefill", "batch_prefill", "batch_verify"):
        lib.add(0)
        lib.begin({0: n})
        positions = [tensor([n - 1], np.int32)] if name == "batch_prefill" else []
        results.append(array(lib.vm[name](lib.embed(ids, 1, n), *positions, lib.kv, lib.packed)[0]))
        lib.end()
    assert [r.shape for r in results] == [(1, 1, VOCAB), (1, 1, VOCAB), (1, n, VOCAB)]
    for result in results:
        assert np.abs(result[0, -1] - SHORT.logits).max() < 1e-3


@pytest.mark.parametrize("name", ["prefill", "batch_prefill", "batch_verify"])
def test_hidden_states_lead_to_the_same_logits(lib: Library, name: str) -> None:
    """Hidden states of all positions, the last one selected, through the output matrix: the same logits."""
    n = len(SHORT.prompt)
    lib.add(0)
    lib.begin({0: n})
    hidden = lib.vm[f"{name}_to_last_hidden_states"](lib.embed(SHORT.prompt, 1, n), lib.kv, lib.packed)[0]
    lib.end()
    assert hidden.shape == (1, n, HIDDEN)
    rows = tensor(array(hidden)[0])
    last = lib.vm["batch_select_last_hidden_states"](rows, tensor([n - 1], np.int32), lib.packed)
    logits = array(lib.vm["get_logits"](last, lib.packed))
    assert np.abs(logits - SHORT.logits).max() < 1e-3


def test_batch_prefill_takes_prompts_of_different_lengths(lib: Library) -> None:
    """Two prompts in one call; logits of each one's last position."""
    lengths = [len(SHORT.prompt), len(LONG.prompt)]
    lib.add(4, 2)
    lib.begin({4: lengths[0], 2: lengths[1]})
    ids = SHORT.prompt + LONG.prompt
    ends = tensor([lengths[0] - 1, sum(lengths) - 1], np.int32)
    logits = array(lib.vm["batch_prefill"](lib.embed(ids, 1, len(ids)), ends, lib.kv, lib.packed)[0])
    lib.end()
    assert logits.shape == (1, 2, VOCAB)
    for row, reference in zip(logits[0], (SHORT, LONG), strict=True):
        assert np.abs(row - reference.logits).max() < 1e-3


def test_decode_continues(lib: Library) -> None:
    """`decode`, `batch_decode` and their hidden states append one token to each sequence."""
    *start, last = SHORT.prompt
    states = []
    for name, lead in (
        ("decode", (1, 1)),
        ("batch_decode", (1, 1)),
        ("decode_to_last_hidden_states", (1, 1)),
        ("batch_decode_to_last_hidden_states", (1, 1)),
    ):
        lib.add(0)
        lib.begin({0: len(start)})
        lib.vm["prefill_to_last_hidden_states"](lib.embed(start, 1, len(start)), lib.kv, lib.packed)
        lib.end()
        lib.begin({0: 1})
        out = lib.vm[name](lib.embed([last], *lead), lib.kv, lib.packed)[0]
        lib.end()
        states.append(array(out).reshape(1, -1))
    logits = states[:2] + [array(lib.vm["get_logits"](tensor(state), lib.packed)) for state in states[2:]]
    for row in logits:
        assert np.abs(row[0] - SHORT.logits).max() < 1e-3


def test_softmax_with_temperature(lib: Library) -> None:
    """Each row by its own temperature."""
    logits = np.random.default_rng(1).standard_normal((2, 1, VOCAB), np.float32) * 5
    temperature = np.array([0.5, 2.0], np.float32)
    got = array(lib.vm["softmax_with_temperature"](tensor(logits), tensor(temperature)))
    exponents = np.exp(logits / temperature[:, None, None])
    assert got == pytest.approx(exponents / exponents.sum(-1, keepdims=True), rel=1e-4, abs=1e-9)


def test_embedding_tensor(lib: Library) -> None:
    """Room for the embeddings of one prefill chunk."""
    assert lib.vm["alloc_embedding_tensor"]().shape == (256, HIDDEN)


def test_penalties_in_place(lib: Library) -> None:
    """Presence and frequency lower a logit, repetition divides or multiplies it; other tokens stay."""
    logits = np.random.default_rng(2).standard_normal((3, VOCAB), np.float32) * 4
    got = tensor(logits)
    penalties = np.array([[0.5, 0.25, 1.2], [0.0, 1.0, 2.0]], np.float32)
    rows, sequence, token, count = [2, 0], [0, 0, 1], [7, 9, 7], [1, 3, 2]
    integers = [tensor(values, np.int32) for values in (rows, sequence, token, count)]
    lib.kernel("apply_penalty_inplace")(got, *integers, tensor(penalties))
    for of, index, times in zip(sequence, token, count, strict=True):
        presence, frequency, repetition = penalties[of]
        lowered = logits[rows[of], index] - presence - times * frequency
        logits[rows[of], index] = lowered * repetition if lowered < 0 else lowered / repetition
    assert array(got) == pytest.approx(logits, abs=1e-6)


def test_logit_bias_in_place(lib: Library) -> None:
    """Biases are added to single logits."""
    logits = np.zeros((2, VOCAB), np.float32)
    got = tensor(logits)
    lib.kernel("apply_logit_bias_inplace")(
        got, tensor([1, 0], np.int32), tensor([5, 1023], np.int32), tensor([2.5, -1.0])
    )
    logits[1, 5], logits[0, 1023] = 2.5, -1.0
    assert np.array_equal(array(got), logits)


def test_bitmask_in_place(lib: Library) -> None:
    """In the rows named, tokens without their bit become impossible."""
    random = np.random.default_rng(3)
    logits = random.standard_normal((3, VOCAB), np.float32)
    mask = random.integers(-(2**31), 2**31, (3, VOCAB // 32), np.int32)
    got = tensor(logits)
    lib.kernel("apply_bitmask_inplace")(got, tensor([2, 0], np.int32), tensor(mask, np.int32))
    allowed = ((mask[:, :, None] >> np.arange(32)) & 1).reshape(3, VOCAB) == 1
    allowed[1] = True
    assert np.array_equal(array(got), np.where(allowed, logits, np.finfo(np.float32).min))


@pytest.mark.parametrize("what", ["hidden_states", "probs"])
def test_rows_are_gathered_and_scattered(lib: Library, what: str) -> None:
    """Rows go to and come from the places that an index names."""
    source = np.random.default_rng(4).standard_normal((5, 6), np.float32)
    index = tensor([4, 1], np.int32)
    gathered = tensor(np.zeros((2, 6)))
    lib.kernel(f"gather_{what}")(tensor(source), index, gathered)
    assert np.array_equal(array(gathered), source[[4, 1]])
    scattered = tensor(np.zeros((5, 6)))
    lib.kernel(f"scatter_{what}")(gathered, index, scattered)
    assert np.array_equal(array(scattered)[[4, 1]], source[[4, 1]])
    assert not array(scattered)[[0, 2, 3]].any()
