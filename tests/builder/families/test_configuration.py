"""What families make of a config.json: MLC's fields, and a refusal by name of what they would get wrong."""

import dataclasses
import json
from typing import Any

import pytest

from builder.compile.families import FAMILIES, MODULES, family, model_config
from builder.compile.families.fields import Fields, Sizes
from builder.errors import BuildError, FormatError, UnsupportedError
from tests.builder.families.tiny import BASE, MODELS

NONE = Sizes(None, None, 4)

# Names and order of the fields of MLC-LLM's configuration classes, kwargs left out.
MLC_FIELDS = {
    "llama": "hidden_size intermediate_size num_attention_heads num_hidden_layers rms_norm_eps vocab_size "
    "tie_word_embeddings position_embedding_base rope_scaling context_window_size prefill_chunk_size "
    "num_key_value_heads head_dim tensor_parallel_shards pipeline_parallel_stages max_batch_size "
    "disaggregation",
    "mistral": "hidden_size intermediate_size num_attention_heads num_hidden_layers rms_norm_eps vocab_size "
    "position_embedding_base num_key_value_heads head_dim context_window_size sliding_window_size "
    "prefill_chunk_size attention_sink_size tensor_parallel_shards max_batch_size",
    "qwen2": "hidden_act hidden_size intermediate_size num_attention_heads num_hidden_layers "
    "num_key_value_heads rms_norm_eps rope_theta vocab_size tie_word_embeddings context_window_size "
    "prefill_chunk_size tensor_parallel_shards head_dim dtype max_batch_size",
    "qwen3": "hidden_act hidden_size intermediate_size attention_bias num_attention_heads num_hidden_layers "
    "num_key_value_heads rms_norm_eps rope_theta vocab_size tie_word_embeddings context_window_size "
    "prefill_chunk_size tensor_parallel_shards head_dim dtype max_batch_size weight_block_size",
    "phi3": "model_type hidden_size vocab_size num_hidden_layers num_attention_heads intermediate_size "
    "rms_norm_eps num_key_value_heads max_position_embeddings position_embedding_base rope_scaling "
    "original_max_position_embeddings context_window_size prefill_chunk_size head_dim "
    "tensor_parallel_shards max_batch_size tie_word_embeddings partial_rotary_factor",
    "gemma2": "hidden_size intermediate_size attention_bias num_attention_heads num_key_value_heads head_dim "
    "num_hidden_layers rms_norm_eps vocab_size hidden_activation position_embedding_base "
    "context_window_size prefill_chunk_size tensor_parallel_shards max_batch_size attn_logit_softcapping "
    "final_logit_softcapping query_pre_attn_scalar sliding_window",
    "gemma3_text": "text_config vocab_size tensor_parallel_shards max_batch_size context_window_size "
    "sliding_window_size prefill_chunk_size is_text_model",
}


def converted(config: dict[str, Any], sizes: Sizes = NONE) -> dict[str, Any]:
    """`model_config` for a config.json."""
    return model_config(Fields("config.json", config), sizes)


def plain(model_type: str) -> dict[str, Any]:
    """The smallest config.json of a family."""
    own: dict[str, Any] = {}
    if model_type.startswith("gemma"):
        own = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
    return {**BASE, "sliding_window": None, **own, "model_type": model_type}


def test_every_family_has_a_model_in_the_tests() -> None:
    """No family goes without references."""
    assert {MODULES[config["model_type"]] for config in MODELS.values()} == set(MODULES.values())


@pytest.mark.parametrize("model_type", MLC_FIELDS)
def test_fields_are_those_of_mlc(model_type: str) -> None:
    """A model without features beyond MLC-LLM's has exactly its fields, in its order."""
    assert list(converted(plain(model_type))) == MLC_FIELDS[model_type].split()


@pytest.mark.parametrize("name", MODELS)
def test_configurations_survive_json(name: str) -> None:
    """What is written gives the same model when it is read again."""
    written = converted(MODELS[name])
    module = family(MODELS[name]["model_type"], "config.json")
    again = json.loads(json.dumps(written))
    assert module.decoder(Fields("model_config", again)) == module.decoder(Fields("model_config", written))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_sizes_that_a_person_chose(model_type: str) -> None:
    """Context, chunk and batch are taken over; the chunk never exceeds the context."""
    config = converted(plain(model_type), Sizes(128, 512, 7))
    assert (config["context_window_size"], config["prefill_chunk_size"]) == (128, 128)
    assert config["max_batch_size"] == 7


def layers(config: dict[str, Any]) -> Any:
    """The attention of a converted model."""
    written = converted(config)
    return family(config["model_type"], "config.json").decoder(Fields("model_config", written)).attention


def test_mistral_window() -> None:
    """null is no window, an absent field transformers' default; one that cuts nothing off is left out."""
    config = {**plain("mistral"), "max_position_embeddings": 8192}
    assert layers(config).windows == (None, None)
    assert converted(config)["sliding_window_size"] == -1
    del config["sliding_window"]
    assert layers(config).windows == (4096, 4096)
    assert converted(config)["sliding_window_size"] == 4096
    assert converted({**config, "sliding_window": 8192})["sliding_window_size"] == -1


def test_a_window_without_end_of_context() -> None:
    """MLC-LLM's directories with a window have context_window_size -1: the window is the context."""
    written = converted(MODELS["mistral"]) | {"context_window_size": -1}
    decoder = family("mistral", "").decoder(Fields("model_config", written))
    assert decoder.attention.windows == (8, 8)


def test_windows_of_some_layers() -> None:
    """Qwen's windows begin after `max_window_layers`, SmolLM3's are in layers without positions; both may be
    listed, and count only where `use_sliding_window` says so.
    """
    on = {"use_sliding_window": True, "sliding_window": 8}
    for model_type in ("qwen2", "qwen3"):
        config = {**plain(model_type), "num_hidden_layers": 3, "sliding_window": 8, "max_window_layers": 1}
        assert layers(config).windows == (None,) * 3
        assert layers({**config, **on}).windows == (None, 8, 8)
        assert layers({**config, **on, "max_window_layers": 0}).windows == (8,) * 3
        assert "layer_types" not in converted({**config, **on, "max_window_layers": 3})
        listed = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
        assert layers({**config, **on, **listed}).windows == (8, None, None)
    config = {**plain("smollm3"), "num_hidden_layers": 5}
    assert layers(config).windows == (None,) * 5
    assert layers({**config, **on}).windows == (None, None, None, 8, None)


def test_smollm3_layers_without_positions() -> None:
    """Every fourth layer does not rotate, unless config.json lists the layers."""
    config = {**plain("smollm3"), "num_hidden_layers": 8}
    rotates = [rope is not None for rope in layers(config).ropes]
    assert rotates == [True, True, True, False] * 2
    config = {**config, "no_rope_layer_interval": 2}
    assert [rope is not None for rope in layers(config).ropes] == [True, False] * 4
    config = {**config, "no_rope_layers": [0, 1, 1, 1, 1, 1, 1, 1, 9]}
    assert [rope is not None for rope in layers(config).ropes] == [False] + [True] * 7


def test_defaults_that_config_json_leaves_out() -> None:
    """Fields that transformers does not write because they are its defaults."""
    config = {key: value for key, value in plain("smollm3").items() if key != "tie_word_embeddings"}
    assert converted(config)["tie_word_embeddings"] is True
    del config["rope_theta"]
    assert converted(config)["position_embedding_base"] == 2000000.0
    assert converted({**plain("qwen3"), "head_dim": None})["head_dim"] == 16


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe'"),
        ({"model_type": "mixtral"}, "model_type 'mixtral'"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"num_local_experts": 8}, "num_local_experts: mixtures of experts"),
        ({"num_experts": 64}, "num_experts: mixtures of experts"),
        ({"vision_config": {}}, "vision_config: models that see"),
        ({"audio_config": {"x": 1}}, "audio_config"),
    ],
)
def test_what_no_family_has_is_refused(changes: dict[str, Any], named: str) -> None:
    """The field is named, and the hint lists the families."""
    with pytest.raises(UnsupportedError, match=named) as caught:
        converted({**plain("llama"), **changes})
    assert all(name in caught.value.hint for name in FAMILIES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_quantised_checkpoints_are_refused(model_type: str) -> None:
    """AWQ, GPTQ and the like cannot be quantised again."""
    with pytest.raises(UnsupportedError, match="already quantised"):
        converted({**plain(model_type), "quantization_config": {"quant_method": "awq"}})


@pytest.mark.parametrize(
    ("model_type", "changes", "named"),
    [
        ("llama", {"attention_bias": True}, "attention_bias True"),
        ("llama", {"mlp_bias": True}, "mlp_bias True"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("smollm3", {"mlp_bias": True}, "mlp_bias True"),
        ("phi3", {"attention_bias": True}, "attention_bias True"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        ("qwen3", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "rope type 'mrope'"),
    ],
)
def test_options_a_family_lacks_are_refused(model_type: str, changes: dict[str, Any], named: str) -> None:
    """Nothing that would change the answers is ignored."""
    with pytest.raises(UnsupportedError, match=named):
        converted({**plain(model_type), **changes})


@pytest.mark.parametrize(
    ("model_type", "changes", "named"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window: 0 is not a positive integer"),
        ("qwen2", {"rope_theta": "fast"}, "rope_theta: 'fast' is not a positive number"),
        ("qwen3", {"attention_bias": 1}, "attention_bias: 1 is not a boolean"),
        ("qwen2", {"max_window_layers": -1}, "max_window_layers: -1"),
        ("qwen3", {"hidden_size": 2**40}, "hidden_size: 1099511627776 is more than"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is more than 4096"),
        ("smollm3", {"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is more than 4096"),
        ("llama", {"head_dim": 10**9}, "head_dim: 1000000000 is more than 4096"),
        ("qwen3", {"rms_norm_eps": 1.5}, "rms_norm_eps: 1.5 is not a small"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": "all" * 50}, r"\.\.\. is not a list"),
        ("llama", {"rope_theta": 1e300}, r"rope_theta: 1e\+300"),
        ("llama", {"rope_theta": float("nan")}, "rope_theta: nan"),
        ("llama", {"rope_scaling": ["linear"]}, "rope_scaling: .* is not an object"),
        ("llama", {"max_position_embeddings": None}, "max_position_embeddings: None"),
    ],
)
def test_impossible_values_are_named(model_type: str, changes: dict[str, Any], named: str) -> None:
    """The error names field and value, in one line of reasonable length."""
    with pytest.raises(FormatError, match=named) as caught:
        converted({**plain(model_type), **changes})
    assert len(str(caught.value)) < 200


JUNK: list[Any] = [None, -1, 0, 1, 3, "x", [], {}, 1e-14, 1e15, 1e300, True]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("junk", JUNK)
def test_junk_in_a_config_json(name: str, junk: Any) -> None:
    """Whatever stands in any field of a checkpoint's config.json: a model, or an error of ours."""
    for field in MODELS[name]:
        config = {**MODELS[name], field: junk}
        try:
            written = converted(config)
            family(config["model_type"], "config.json").decoder(Fields("model_config", written))
        except BuildError as error:
            assert "\n" not in str(error)  # noqa: PT017 -- a model is allowed, other exceptions are not
        else:
            assert json.loads(json.dumps(written)) == written


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("junk", JUNK)
def test_junk_in_a_model_config(name: str, junk: Any) -> None:
    """Whatever stands in any field of a directory's `model_config`: a model, or an error of ours."""
    written = converted(MODELS[name])
    module = family(MODELS[name]["model_type"], "config.json")
    for field in written:
        try:
            decoder = module.decoder(Fields("model_config", {**written, field: junk}))
        except BuildError as error:
            assert "\n" not in str(error)  # noqa: PT017 -- a model is allowed, other exceptions are not
        else:
            assert decoder.attention.layers == len(decoder.layers)


def test_parameters_are_listed_once() -> None:
    """A tied model has its embedding once, an untied one its head too; names are all different."""
    for name, config in MODELS.items():
        decoder = family(config["model_type"], name).decoder(Fields(name, converted(config)))
        names = [parameter.name for parameter in decoder.parameters]
        assert len(set(names)) == len(names)
        assert (decoder.head is decoder.embedding) == config["tie_word_embeddings"]
        given = [
            getattr(layer, field.name) for layer in decoder.layers for field in dataclasses.fields(layer)
        ]
        assert len(given) == 12 * len(decoder.layers)
