"""Phi-3: MLC-LLM's names, and LongRoPE as its checkpoints describe it over the years."""

from typing import Any

import numpy as np
import pytest

from builder.compile.families import family, model_config
from builder.compile.families.decoder import Decoder
from builder.compile.families.fields import Fields, Sizes
from builder.errors import FormatError
from tests.builder.families.tiny import MODELS

SHORT, LONG = MODELS["phi3"], MODELS["phi3-long"]


def converted(config: dict[str, Any], context: int | None = None) -> dict[str, Any]:
    """`model_config` for a config.json."""
    return model_config(Fields("config.json", config), Sizes(context, None, 4))


def decoder(written: dict[str, Any]) -> Decoder:
    """The model of a `model_config`."""
    return family("phi3", "").decoder(Fields("model_config", written))


def rates(written: dict[str, Any]) -> Any:
    """Angles per position in the first layer."""
    rope = decoder(written).attention.ropes[0]
    assert rope is not None
    return np.array(rope.rates)


def test_names_of_weights() -> None:
    """Those of MLC-LLM, each from one tensor of the checkpoint."""
    model = decoder(converted(SHORT))
    layer = [parameter for parameter in model.parameters if ".h.1." in parameter.name]
    assert {p.name.removeprefix("transformer.h.1."): p.sources[0][0] for p in layer} == {
        "ln.weight": "model.layers.1.input_layernorm.weight",
        "mixer.qkv_proj.weight": "model.layers.1.self_attn.qkv_proj.weight",
        "mixer.out_proj.weight": "model.layers.1.self_attn.o_proj.weight",
        "post_attention_layernorm.weight": "model.layers.1.post_attention_layernorm.weight",
        "mlp.gate_up_proj.weight": "model.layers.1.mlp.gate_up_proj.weight",
        "mlp.down_proj.weight": "model.layers.1.mlp.down_proj.weight",
    }
    assert [model.embedding.name, model.norm.name] == ["transformer.embd.weight", "transformer.norm.weight"]


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_older_names_of_longrope(kind: str) -> None:
    """The first checkpoints call it otherwise; MLC-LLM finds its own name under the key it looks at."""
    older = {**SHORT, "rope_scaling": {**SHORT["rope_scaling"], "type": kind}}
    assert converted(older) == converted(SHORT)
    assert converted(older)["rope_scaling"]["type"] == "longrope"


def test_both_generations_of_transformers() -> None:
    """`rope_parameters` means the same as the older fields."""
    older = ("rope_scaling", "rope_theta", "partial_rotary_factor")
    newer = {name: value for name, value in SHORT.items() if name not in older}
    scaling = {"rope_type": "longrope", **SHORT["rope_scaling"]}
    newer["rope_parameters"] = scaling | {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    assert converted(newer) == converted(SHORT)


def test_context_decides_about_the_factors() -> None:
    """The default context keeps to those for short texts; a longer one takes the others, for all texts."""
    plain = 1 / 1e4 ** (np.arange(8) / 8)
    short, long = SHORT["rope_scaling"]["short_factor"], SHORT["rope_scaling"]["long_factor"]
    written = converted(SHORT)
    assert written["context_window_size"] == 64
    np.testing.assert_allclose(rates(written), plain / short, rtol=1e-6)
    np.testing.assert_allclose(rates(converted(SHORT, 65)), plain / long, rtol=1e-6)


def test_directories_of_mlc() -> None:
    """MLC-LLM adds both lengths to the checkpoint's scaling, and leaves the attention factor to follow.

    Its older directories have the lengths beside the scaling only.
    """
    written = converted(LONG, 256)
    theirs = written | {
        "rope_scaling": {
            **LONG["rope_scaling"],
            "rope_type": "longrope",
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 8,
        }
    }
    assert decoder(theirs) == decoder(written)
    older = written | {"rope_scaling": LONG["rope_scaling"]}
    assert decoder(older) == decoder(written)
    plain = converted({**SHORT, "rope_scaling": None})
    assert decoder(plain | {"original_max_position_embeddings": 0}) == decoder(plain)


def test_window() -> None:
    """A window is one of all layers, unless it holds the whole context."""
    assert decoder(converted(SHORT)).attention.windows == (8, 8)
    assert decoder(converted({**SHORT, "sliding_window": 64})).attention.windows == (None, None)
    assert "sliding_window" not in converted({**SHORT, "sliding_window": None})


def test_rotation_of_more_than_a_head() -> None:
    """The part that is rotated cannot exceed the head."""
    with pytest.raises(FormatError, match="partial_rotary_factor"):
        decoder(converted(SHORT) | {"partial_rotary_factor": 1.5})
