"""Rotary frequencies against those that transformers computes, and by their definitions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.compile.families.fields import Fields
from builder.compile.families.rope import Rope, rope, rope_config
from builder.errors import FormatError, UnsupportedError

# Written by transformers 5.23 (ROPE_INIT_FUNCTIONS); each case names its inputs.
CASES = json.loads((Path(__file__).parents[2] / "golden" / "rope.json").read_text())


def turn(scaling: dict[str, Any], dim: int = 16, theta: float = 10000.0, context: int = 256) -> Rope:
    """The rotation that an object of `model_config` describes."""
    return rope(theta, dim, Fields("rope_scaling", scaling), context=context)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_agrees_with_transformers(case: dict[str, Any]) -> None:
    """Every kind of scaling gives transformers' inverse frequencies and attention factor, as float32."""
    found = turn(case["scaling"], case["dim"], case["theta"], case["context"] or 256)
    np.testing.assert_allclose(found.rates, case["rates"], rtol=3e-7)
    assert found.gain == pytest.approx(case["gain"], rel=1e-7)
    assert all(float(np.float32(rate)) == rate for rate in found.rates)


def test_without_scaling() -> None:
    """No scaling, "default", and a dynamic one inside its context are the same."""
    plain = turn({})
    assert plain.rates[0] == 1.0
    assert plain.gain == 1.0
    assert turn({"rope_type": "default"}) == plain
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 256}
    assert turn(dynamic, context=256) == plain
    with pytest.raises(UnsupportedError, match="'dynamic' reaches 256 tokens, not 257") as caught:
        turn(dynamic, context=257)
    assert "smaller context" in caught.value.hint


def test_the_context_decides_between_short_and_long() -> None:
    """Models for more than the original context turn by the long factors, all others by the short."""
    scaling = {
        "type": "su",
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 128,
        "max_position_embeddings": 512,
    }
    short, long = turn(scaling, context=128), turn(scaling, context=129)
    assert short.rates == turn({}).rates
    np.testing.assert_allclose(np.array(short.rates) / long.rates, 4, rtol=1e-6)
    assert short.gain == long.gain == pytest.approx(math.sqrt(1 + math.log(4) / math.log(128)))


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0}
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
        ({"rope_type": "dynamic"}, "factor: None"),
        ({**LLAMA3, "factor": 0}, "factor: 0"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "low_freq_factor: 1.0"),
        ({**LLAMA3, "original_max_position_embeddings": None}, "original_max_position_embeddings: None"),
        ({**YARN, "truncate": 3}, "truncate: 3"),
        ({**YARN, "beta_fast": -1}, "beta_fast: -1"),
        ({**YARN, "original_max_position_embeddings": "long"}, "original_max_position_embeddings: 'long'"),
        ({**LONGROPE, "long_factor": [1.0] * 7}, "is not a list of 8 numbers"),
        ({**LONGROPE, "long_factor": None}, "long_factor: None"),
        ({**LONGROPE, "long_factor": [1.0] * 7 + ["x"]}, "has a number that is not positive"),
        ({**LONGROPE, "attention_factor": 0}, "attention_factor: 0"),
    ],
)
def test_missing_and_impossible_numbers(scaling: dict[str, Any], named: str) -> None:
    """The error names the field and what it holds."""
    with pytest.raises(FormatError, match=named):
        turn(scaling)


def test_unknown_types_are_refused() -> None:
    """Another type is refused by name, with those there are."""
    with pytest.raises(UnsupportedError, match="rope type 'mrope'") as caught:
        turn({"rope_type": "mrope"})
    assert "yarn" in caught.value.hint


@pytest.mark.parametrize(
    "scaling",
    [{"rope_type": "linear", "factor": 2}, LLAMA3, YARN, {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}],
    ids=["linear", "llama3", "yarn", "mscale"],
)
def test_what_conversion_writes_means_the_same(scaling: dict[str, Any]) -> None:
    """A description written into `model_config` has every number: no default is needed to read it."""
    theta, written = rope_config(
        Fields("config.json", {"max_position_embeddings": 64, "rope_scaling": scaling, "rope_theta": 500.0})
    )
    assert theta == 500.0
    assert written is not None
    assert turn(written, context=64) == turn(written, context=4096)
    assert turn(written, context=64) == turn({**scaling, "max_position_embeddings": 64})


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_partial_rotation_is_refused_where_a_family_has_none(place: str) -> None:
    """A part of each head that does not turn is never ignored."""
    part = {"partial_rotary_factor": 0.5}
    fields = part if place == "outside" else {"rope_parameters": {"rope_type": "default", **part}}
    with pytest.raises(UnsupportedError, match="partial_rotary_factor"):
        rope_config(Fields("config.json", fields))
    assert rope_config(Fields("config.json", fields), partial=True) == (10000.0, None)
