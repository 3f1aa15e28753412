"""The Llama family in Hugging Face checkpoints: configuration and tensor names, and what MLC makes of them.

Llama 2 and 3.x, SmolLM2, TinyLlama and everything else whose `model_type` is "llama".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.compile.import_.safetensors import Checkpoint
from builder.errors import FormatError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of the model library, before quantisation.

    Attributes:
        name: as the library calls it, with the ending ".weight".
        sources: checkpoint tensors whose rows it holds, in order, each with its shape.
        quantised: whether the 4-bit formats quantise it (else it keeps the model dtype).
    """

    name: str
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    quantised: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole: the sources stacked."""
        first = self.sources[0][1]
        return (sum(shape[0] for _, shape in self.sources), *first[1:])


def llama_config(
    file: Path,
    source: Mapping[str, Any],
    context_window_size: int | None,
    prefill_chunk_size: int | None,
    max_batch_size: int,
) -> dict[str, Any]:
    """Return MLC's `model_config` from the `config.json` that `source` was read from.

    Raises:
        UnsupportedError: not the Llama family, or an option of it that the compiled model lacks.
        FormatError: a number is missing or impossible.
    """
    if source.get("model_type") != "llama":
        raise UnsupportedError(
            f"{file}: model_type {source.get('model_type')!r} is not supported", hint="Supported: llama."
        )
    if "quantization_config" in source:
        raise UnsupportedError(
            f"{file}: the checkpoint is already quantised",
            hint="Convert the original, unquantised checkpoint.",
        )
    for field, only in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("rope_interleaved", False),
    ):
        if source.get(field, only) != only:
            raise UnsupportedError(
                f"{file}: {field} {source[field]!r} is not supported", hint=f"Only {only!r} is."
            )

    def number(field: str, default: int | None = None) -> int:
        value = source.get(field)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FormatError(f"{file}: {field}: {value!r} is not a positive integer")
        return value

    tied = source.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise FormatError(f"{file}: tie_word_embeddings: {tied!r} is not a boolean")
    epsilon = source.get("rms_norm_eps", 1e-6)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise FormatError(f"{file}: rms_norm_eps: {epsilon!r} is not a small positive number")
    heads = number("num_attention_heads")
    hidden = number("hidden_size")
    theta, scaling = rope(file, source)
    context = context_window_size or number("max_position_embeddings")
    kv_heads = number("num_key_value_heads", heads)
    if heads % kv_heads:
        raise FormatError(f"{file}: num_key_value_heads does not divide num_attention_heads")
    return {
        "hidden_size": hidden,
        "intermediate_size": number("intermediate_size"),
        "num_attention_heads": heads,
        "num_hidden_layers": number("num_hidden_layers"),
        "rms_norm_eps": epsilon,
        "vocab_size": number("vocab_size"),
        "tie_word_embeddings": tied,
        "position_embedding_base": theta,
        "rope_scaling": scaling,
        "context_window_size": context,
        "prefill_chunk_size": min(prefill_chunk_size or 8192, context),
        "num_key_value_heads": kv_heads,
        "head_dim": number("head_dim", hidden // heads),
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "max_batch_size": max_batch_size,
        "disaggregation": False,
    }


def rope(file: Path, source: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Return the rotary base and MLC's `rope_scaling`, from either generation of `config.json`.

    transformers 4 writes `rope_theta` and `rope_scaling`; transformers 5 puts both into `rope_parameters`.

    Raises:
        UnsupportedError: a scaling other than llama3's.
    """
    parameters = source.get("rope_parameters") or source.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise FormatError(f"{file}: rope_scaling is not an object")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = parameters.get("rope_theta", source.get("rope_theta", 10000))
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not theta > 0:
        raise FormatError(f"{file}: rope_theta: {theta!r} is not a positive number")
    if parameters.get("partial_rotary_factor", source.get("partial_rotary_factor", 1)) != 1:
        raise UnsupportedError(f"{file}: partial_rotary_factor is not supported")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UnsupportedError(
            f"{file}: rope type {kind!r} is not supported", hint="Supported: default, llama3."
        )
    needed = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for field in needed:
        if not isinstance(parameters.get(field), int | float):
            raise FormatError(f"{file}: rope scaling llama3 needs {field}")
    return theta, {"rope_type": kind, **{field: parameters[field] for field in needed}}


def llama_parameters(model: Mapping[str, Any]) -> list[Parameter]:
    """Return every tensor of the model library with the checkpoint tensors it is made of."""
    hidden, inner, vocab = model["hidden_size"], model["intermediate_size"], model["vocab_size"]
    q_rows = model["num_attention_heads"] * model["head_dim"]
    kv_rows = model["num_key_value_heads"] * model["head_dim"]

    def matrix(name: str, *sources: tuple[str, int, int]) -> Parameter:
        return Parameter(f"{name}.weight", tuple((f"{s}.weight", (n, k)) for s, n, k in sources), True)

    def norm(name: str) -> Parameter:
        return Parameter(f"{name}.weight", ((f"{name}.weight", (hidden,)),), False)

    parameters = [matrix("model.embed_tokens", ("model.embed_tokens", vocab, hidden)), norm("model.norm")]
    for i in range(model["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        parameters += [
            matrix(
                f"{attention}.qkv_proj",
                (f"{attention}.q_proj", q_rows, hidden),
                (f"{attention}.k_proj", kv_rows, hidden),
                (f"{attention}.v_proj", kv_rows, hidden),
            ),
            matrix(f"{attention}.o_proj", (f"{attention}.o_proj", hidden, q_rows)),
            matrix(
                f"{mlp}.gate_up_proj", (f"{mlp}.gate_proj", inner, hidden), (f"{mlp}.up_proj", inner, hidden)
            ),
            matrix(f"{mlp}.down_proj", (f"{mlp}.down_proj", hidden, inner)),
            norm(f"{layer}.input_layernorm"),
            norm(f"{layer}.post_attention_layernorm"),
        ]
    if not model["tie_word_embeddings"]:
        parameters.append(matrix("lm_head", ("lm_head", vocab, hidden)))
    return parameters


def in_checkpoint_order(parameters: Iterable[Parameter], checkpoint: Checkpoint) -> list[Parameter]:
    """Return the parameters in the order in which the checkpoint first has a part of each, as MLC-LLM does.

    Raises:
        FormatError: a tensor is missing or has another shape than config.json says.
        UnsupportedError: the checkpoint has a tensor that the model would ignore.
    """
    owner: dict[str, Parameter] = {}
    for parameter in parameters:
        for name, shape in parameter.sources:
            owner[name] = parameter
            if name not in checkpoint.tensors:
                raise FormatError(
                    f"{checkpoint.directory}: tensor {name} is missing",
                    hint="The checkpoint is incomplete, or config.json belongs to another.",
                )
            if (found := checkpoint.tensors[name].shape) != shape:
                raise FormatError(
                    f"{checkpoint.tensors[name].file}: {name} has shape {list(found)}, not {list(shape)}",
                    hint="config.json belongs to another checkpoint.",
                )
    for name in checkpoint.tensors:
        # Old checkpoints carry tables that follow from the configuration; tied ones may carry a copy.
        if name not in owner and not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight":
            raise UnsupportedError(
                f"{checkpoint.tensors[name].file}: tensor {name} has no place in a Llama model"
            )
    return list(dict.fromkeys(owner[name] for name in checkpoint.tensors if name in owner))
