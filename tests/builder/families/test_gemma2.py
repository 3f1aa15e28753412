"""Gemma 2: caps, windows and scale as config.json says or leaves out."""

from typing import Any

import pytest

from builder.compile.families import family, model_config
from builder.compile.families.decoder import Decoder
from builder.compile.families.fields import Fields, Sizes
from builder.errors import FormatError
from tests.builder.families.tiny import MODELS

MODEL = MODELS["gemma2"]


def converted(config: dict[str, Any]) -> dict[str, Any]:
    """`model_config` for a config.json."""
    return model_config(Fields("config.json", config), Sizes(None, None, 4))


def decoder(written: dict[str, Any]) -> Decoder:
    """The model of a `model_config`."""
    return family("gemma2", "").decoder(Fields("model_config", written))


def test_what_is_told() -> None:
    """Caps, the scale of scores, that of embeddings, and a window in every other layer."""
    model = decoder(converted({**MODEL, "num_hidden_layers": 5}))
    assert (model.attention.softcap, model.softcap) == (1.5, 2.0)
    assert model.attention.scale == 20**-0.5
    assert model.attention.windows == (8, None, 8, None, 8)
    assert model.embedding_scale == 8
    assert model.head is model.embedding


def test_what_is_left_out() -> None:
    """A missing cap is transformers' default, null is none."""
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    silent = decoder(converted({name: value for name, value in MODEL.items() if name not in names}))
    assert (silent.attention.softcap, silent.softcap) == (50.0, 30.0)
    none = decoder(converted(MODEL | dict.fromkeys(names)))
    assert (none.attention.softcap, none.softcap) == (None, None)


def test_windows_that_hold_the_context() -> None:
    """They are none; layers may be told one by one, and then the directory tells them too."""
    assert decoder(converted({**MODEL, "sliding_window": 256})).attention.windows == (None, None)
    assert "layer_types" not in converted(MODEL)
    swapped = converted({**MODEL, "layer_types": ["full_attention", "sliding_attention"]})
    assert decoder(swapped).attention.windows == (None, 8)


@pytest.mark.parametrize("types", [["full_attention"], ["full_attention", 1], "full_attention"])
def test_layer_types_are_checked(types: Any) -> None:
    """One known kind for each layer."""
    with pytest.raises(FormatError, match="layer_types"):
        converted({**MODEL, "layer_types": types})
