"""Gemma 3: what config.json says in several ways, and the text model of a checkpoint that sees pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.compile.convert import convert
from builder.compile.families import family, model_config
from builder.compile.families.decoder import Decoder
from builder.compile.families.fields import Fields, Sizes
from builder.errors import FormatError, UnsupportedError
from tests.builder.checkpoints import write_safetensors
from tests.builder.families.tiny import MODELS, tensors, write_checkpoint_files

TEXT = MODELS["gemma3"]
LAYERS = TEXT["num_hidden_layers"]


def converted(config: dict[str, Any]) -> dict[str, Any]:
    """`model_config` for a config.json."""
    return model_config(Fields("config.json", config), Sizes(None, None, 4))


def decoder(written: dict[str, Any]) -> Decoder:
    """The model of a `model_config`."""
    return family("gemma3_text", "").decoder(Fields("model_config", written))


def test_fields_of_the_text_model() -> None:
    """MLC-LLM's, in its order, and then what it does not know."""
    text = converted(TEXT)["text_config"]
    assert list(text) == [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "attention_bias",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "hidden_activation",
        "position_embedding_base",
        "rope_scaling",
        "context_window_size",
        "prefill_chunk_size",
        "query_pre_attn_scalar",
        "sliding_window_size",
        "rope_local_base_freq",
        "layer_types",
    ]


def test_names_of_weights() -> None:
    """MLC-LLM's: queries, keys and values apart, gate and up together, norms with 1 added."""
    model = decoder(converted(TEXT))
    layer = {parameter.name: parameter for parameter in model.parameters if ".layers.1." in parameter.name}
    prefix = "language_model.model.layers.1."
    assert {name.removeprefix(prefix) for name in layer} == {
        *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"self_attn.{part}_norm.weight" for part in "qk"),
        *(f"mlp.{part}_proj.weight" for part in ("gate_up", "down")),
        *(f"{side}_feedforward_layernorm.weight" for side in ("pre", "post")),
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    }
    norms = [parameter for name, parameter in layer.items() if "norm" in name]
    assert len(norms) == 6
    assert {parameter.offset for parameter in norms} == {1.0}
    assert all(source.startswith("model.layers.1.") for p in layer.values() for source, _ in p.sources)


def test_both_generations_of_transformers() -> None:
    """Bases and scaling by type of layer mean the same as the older three fields."""
    older = ("rope_theta", "rope_local_base_freq", "rope_scaling")
    newer = {name: value for name, value in TEXT.items() if name not in older}
    newer["rope_parameters"] = {
        "full_attention": {"rope_theta": TEXT["rope_theta"], **TEXT["rope_scaling"]},
        "sliding_attention": {"rope_theta": TEXT["rope_local_base_freq"], "rope_type": "default"},
    }
    assert converted(newer) == converted(TEXT)


def test_layers_turn_by_their_kind() -> None:
    """Layers with a window turn fast and unscaled, the others slowly; scores have the scale that is told."""
    attention = decoder(converted(TEXT)).attention
    assert attention.windows == (8, 8, None, 8)
    assert attention.scale == 20**-0.5
    near, far = attention.ropes[0], attention.ropes[2]
    assert near is not None
    assert far is not None
    assert near.rates[1] == pytest.approx(1000 ** (-1 / 16))
    assert far.rates[1] == pytest.approx(1e6 ** (-1 / 16) / 4)


def test_windows_by_default() -> None:
    """Five layers with a window, one without, and so on; the pattern's length may be told."""
    plain = {name: value for name, value in TEXT.items() if name != "layer_types"} | {"num_hidden_layers": 7}
    assert decoder(converted(plain)).attention.windows == (8,) * 5 + (None, 8)
    short = {**plain, "sliding_window_pattern": 2}
    assert decoder(converted(short)).attention.windows == (8, None, 8, None, 8, None, 8)


def test_numbers_that_config_json_leaves_out() -> None:
    """The text model of a checkpoint with pictures tells what is not as in transformers' defaults."""
    nested = {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "num_hidden_layers": 34}}
    model = decoder(converted(nested))
    assert (model.hidden, model.vocab, model.attention.layers) == (2560, 262208, 34)
    assert (model.attention.heads, model.attention.kv_heads, model.attention.head_dim) == (8, 4, 256)
    assert model.embedding.name == "language_model.model.embed_tokens.weight"
    assert model.embedding.sources[0][0] == "language_model.model.embed_tokens.weight"


def test_directories_of_mlc() -> None:
    """What MLC-LLM has no field for, it keeps as "kwargs"; no scaling is 0."""
    written = converted(TEXT)
    text = dict(written["text_config"])
    kept = {name: text.pop(name) for name in ("rope_local_base_freq", "layer_types")}
    theirs = written | {"text_config": text | {"kwargs": kept}}
    assert decoder(theirs) == decoder(written)
    plain = written | {"text_config": written["text_config"] | {"rope_scaling": 0}}
    rope = decoder(plain).attention.ropes[2]
    assert rope is not None
    assert rope.rates[1] == pytest.approx(1e6 ** (-1 / 16))


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"layer_types": ["full_attention"]}, FormatError, "layer_types"),
        ({"layer_types": ["chunked_attention"] * LAYERS}, FormatError, "layer_types"),
        ({"use_bidirectional_attention": True}, UnsupportedError, "use_bidirectional_attention"),
        ({"tie_word_embeddings": False}, UnsupportedError, "tie_word_embeddings"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, UnsupportedError, "yarn"),
        ({"query_pre_attn_scalar": 0}, FormatError, "query_pre_attn_scalar"),
        ({"sliding_window": -1}, FormatError, "sliding_window"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], error: type[Exception], named: str) -> None:
    """Options that would compute something else, and impossible values."""
    with pytest.raises(error, match=named):
        converted(TEXT | change)


def test_text_model_of_a_checkpoint_with_pictures(tmp_path: Path) -> None:
    """It converts to the same weights as the text model alone; what sees pictures is left aside."""
    own = ("model_type", "bos_token_id", "eos_token_id", "pad_token_id")
    nested = {name: TEXT[name] for name in own[1:]} | {
        "model_type": "gemma3",
        "text_config": {name: value for name, value in TEXT.items() if name not in own},
        "vision_config": {"hidden_size": 32},
    }
    weights = tensors("gemma3")
    pictures = {
        "vision_tower.vision_model.post_layernorm.weight": np.ones(32, np.float32),
        "multi_modal_projector.mm_input_projection_weight": np.ones((32, 64), np.float32),
    }
    models = []
    for name, config, values in (
        ("alone", TEXT, weights),
        ("pictures", nested, pictures | {f"language_model.{name}": value for name, value in weights.items()}),
    ):
        write_checkpoint_files(tmp_path / name, config)
        write_safetensors(tmp_path / name / "model.safetensors", values)
        models.append(convert(tmp_path / name, tmp_path / f"{name}-mlc", "q4f32_1", max_batch_size=4))
    alone, within = models
    assert alone.tensors == within.tensors
    for name in alone.tensors:
        np.testing.assert_array_equal(alone.read(name), within.read(name))
