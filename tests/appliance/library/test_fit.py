"""What a model will need, before it is here."""

import json

import pytest

from appliance.errors import InvalidRequestError
from appliance.hardware.memory import Fit
from appliance.library.fit import (
    converted_bytes,
    gguf_bits,
    judge,
    quantised_bits,
    sentence,
    stored_bits,
)
from tests.appliance.library.adding import CHECKPOINT, MLC

GB = 10**9


@pytest.mark.parametrize(
    ("name", "bits"),
    [("q4f16_1", 4.5), ("q4f32_1", 4.5), ("q3f16_1", 3.6), ("q0f16", 16), ("q0f32", 32)],
)
def test_bits_of_a_format(name: str, bits: float) -> None:
    """A format's digit are its bits, and a group of 32 shares a scale."""
    assert quantised_bits(name) == bits


def test_formats_that_there_are_not() -> None:
    """A format's name that Hob does not know is refused with those that it knows."""
    for name in ("", "q", "int4", "q5f16_1"):
        with pytest.raises(InvalidRequestError, match="not supported") as caught:
            quantised_bits(name)
        assert "q4f16_1" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("a-Q4_0.gguf", 4.5),
        ("a.Q8_0.gguf", 8.5),
        ("a-q4_k_m.gguf", 4.85),
        ("a-BF16.gguf", 16),
        ("a.gguf", 4.5),
    ],
)
def test_bits_of_a_gguf_file(name: str, bits: float) -> None:
    """Its name tells the format."""
    assert gguf_bits(name) == bits


def test_the_size_after_converting_is_about_right() -> None:
    """The reckoning for the golden checkpoint comes near to what its conversion takes, and not below."""
    config = json.loads((CHECKPOINT / "config.json").read_text())
    stored = (CHECKPOINT / "model.safetensors").stat().st_size
    real = (MLC / "params_shard_0.bin").stat().st_size
    reckoned = converted_bytes(stored, stored_bits(config), "q4f16_1")
    assert real <= reckoned <= 1.2 * real


def test_the_cache_is_reckoned_from_either_description() -> None:
    """MLC's and Hugging Face's description of one model give the same memory."""
    mlc = json.loads((MLC / "mlc-chat-config.json").read_text())
    checkpoint = json.loads((CHECKPOINT / "config.json").read_text())
    context = min(mlc["context_window_size"], checkpoint["max_position_embeddings"])
    assert judge(1000, mlc, context).needed == judge(1000, checkpoint, context).needed
    assert judge(1000, {"text_config": checkpoint}, context).needed == judge(1000, mlc, context).needed


def test_a_description_that_says_nothing_is_no_obstacle() -> None:
    """Unknown and odd fields leave an estimate; the reader of the model complains, not this."""
    for config in (
        {},
        {"num_hidden_layers": "many"},
        {"num_hidden_layers": 1, "num_attention_heads": 0},
        None,
    ):
        assert judge(GB, config, 4096).needed > 1.1 * GB


@pytest.mark.parametrize(
    ("available", "total", "words"),
    [
        (3 * GB, 8 * GB, "It fits: "),
        (GB, 8 * GB, "only when other programs end"),
        (GB, 2 * GB - 1, "does not fit"),
    ],
)
def test_the_verdict_is_a_sentence(available: int, total: int, words: str) -> None:
    """Whether it fits is said with the figures."""
    said = sentence(Fit(2 * GB, available, total))
    assert words in said
    assert "2.0 GB" in said
