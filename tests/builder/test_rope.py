"""Rotary frequencies against those that Hugging Face transformers computes, and by their definitions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.compile.rope import frequencies
from builder.errors import FormatError, UnsupportedError

# Written by transformers 5.23 (ROPE_INIT_FUNCTIONS); each case names its inputs.
CASES = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_agrees_with_transformers(case: dict[str, Any]) -> None:
    """Every kind of scaling gives transformers' inverse frequencies and attention factor."""
    rope = frequencies(case["theta"], case["dim"], case["scaling"], context=case["context"])
    np.testing.assert_allclose(rope.rates, case["rates"], rtol=3e-7)
    assert rope.gain == pytest.approx(case["gain"], rel=1e-7)


def test_without_scaling() -> None:
    """No scaling, an empty one and "default" are the same; the first pair turns by one radian a position."""
    plain = frequencies(10000.0, 64)
    assert plain.rates[0] == 1.0
    assert plain.gain == 1.0
    assert frequencies(10000.0, 64, {}) == plain
    assert frequencies(10000.0, 64, {"rope_type": "default"}) == plain


def test_rates_are_float32() -> None:
    """What becomes a constant of a kernel loses nothing."""
    for case in CASES:
        rope = frequencies(case["theta"], case["dim"], case["scaling"], context=case["context"])
        assert all(float(np.float32(rate)) == rate for rate in rope.rates)


def test_long_context_decides_once() -> None:
    """Libraries for more than the original context turn by the long factors, all others by the short."""
    scaling = {
        "type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 128,
        "max_position_embeddings": 512,
    }
    plain = frequencies(10000.0, 16)
    assert frequencies(10000.0, 16, scaling, context=128).rates == plain.rates
    np.testing.assert_allclose(
        frequencies(10000.0, 16, scaling, context=129).rates, np.array(plain.rates) / 4, rtol=1e-6
    )
    gain = math.sqrt(1 + math.log(4) / math.log(128))
    assert frequencies(10000.0, 16, scaling).gain == pytest.approx(gain)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0] * 8,
    "original_max_position_embeddings": 64,
    "factor": 2.0,
}


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "linear"}, "factor: None"),
        ({"rope_type": "linear", "factor": "2"}, "factor: '2'"),
        ({"rope_type": "linear", "factor": math.inf}, "factor: inf"),
        ({"rope_type": "linear", "factor": True}, "factor: True"),
        ({**LLAMA3, "factor": 0}, "factor: 0"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor: 1.0"),
        ({"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings"),
        ({**LONGROPE, "long_factor": [1.0] * 7}, "long_factor: 7 numbers, 8"),
        ({**LONGROPE, "short_factor": None}, "short_factor: None, 8"),
        ({**LONGROPE, "short_factor": [1.0] * 7 + ["x"]}, "short_factor: 'x'"),
        ({**LONGROPE, "factor": None}, "max_position_embeddings"),
    ],
)
def test_missing_and_impossible_fields(scaling: dict[str, Any], named: str) -> None:
    """The error names the field and what it holds."""
    with pytest.raises(FormatError, match=named):
        frequencies(10000.0, 16, scaling)


def test_unknown_scaling() -> None:
    """Another type is refused by name."""
    with pytest.raises(UnsupportedError, match="dynamic"):
        frequencies(10000.0, 64, {"rope_type": "dynamic", "factor": 2.0})
