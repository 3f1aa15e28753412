"""From a model directory's description to object files: builds the Relax module and runs TVM's compiler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from builder.compile.families import llama, logits
from builder.compile.families.functions import Limits, emit_functions, emit_metadata
from builder.compile.families.parameters import Parameters
from builder.compile.kernels.isa import ISAS
from builder.compile.library import Kernels
from builder.compile.mlc import MLCDirectory
from builder.compile.operators import FloatOperators, Int8Operators, Operators
from builder.compile.quantise import QUANTISATIONS
from builder.compile.targets import Target
from builder.errors import FormatError

# Rows of the largest prefill. More would cost memory for intermediate results and gain little speed.
PREFILL_CHUNK = 512
# Sequences decoded together.
MAX_BATCH = 4


def build_objects(
    model: MLCDirectory,
    target: Target,
    kernels: Kernels,
    scratch: Path,
    progress: Callable[[str, float], None],
) -> list[Path]:
    """Compile `model` for `target`; return the object files, written into `scratch`.

    Raises:
        FormatError: the directory lacks a tensor of its architecture, or one has another shape.
        UnsupportedError: something in the configuration.
    """
    progress("build graph", 0.1)
    tvm_target = tvm.target.Target(dict(target.tvm()))
    module = build_module(model, target, kernels, tvm_target)
    progress("compile", 0.25)
    with tvm.transform.PassContext(opt_level=3):
        executable = tvm.compile(module, tvm_target)
    progress("write objects", 0.9)
    objects: list[Path] = []
    executable.export_library(
        str(scratch / "unused"),
        workspace_dir=str(scratch),
        fcompile=lambda _output, files, **_options: objects.extend(map(Path, files)),
    )
    return objects


def build_module(model: MLCDirectory, target: Target, kernels: Kernels, tvm_target: Any) -> Any:
    """The Relax module: MLC's functions, `_metadata`, and the packing kernels by their plain names."""
    config = model.config
    shape = llama.LlamaShape.read(config["model_config"])
    isa = ISAS[target.isa]
    int4 = QUANTISATIONS[model.quantization].bits == 4
    # Unquantised weights have no fast form: their kernels are the exact ones.
    operators: Operators = (
        Int8Operators(isa, shape.eps) if kernels == "fast" and int4 else FloatOperators(isa, shape.eps)
    )
    parameters = Parameters(model.quantization, operators.pack)
    family = llama.Llama(shape, parameters, operators)
    check_tensors(model, parameters)
    chunk = min(PREFILL_CHUNK, int(config["prefill_chunk_size"]))
    builder = relax.BlockBuilder()
    emit_functions(builder, family, parameters, isa, Limits(chunk, MAX_BATCH))
    attention = shape.attention
    emit_metadata(
        builder,
        {
            "model_type": model.model_type,
            "quantization": model.quantization,
            "context_window_size": model.context_window,
            "sliding_window_size": -1,
            "attention_sink_size": -1,
            "prefill_chunk_size": chunk,
            "tensor_parallel_shards": 1,
            "pipeline_parallel_stages": 1,
            "disaggregation": False,
            "kv_state_kind": "kv_cache",
            "max_batch_size": MAX_BATCH,
            "active_vocab_size": int(config.get("active_vocab_size", shape.vocab)),
            "model_task": "chat",
            "kv_cache": {
                "num_hidden_layers": attention.layers,
                "num_attention_heads": attention.heads,
                "num_key_value_heads": attention.kv_heads,
                "head_dim": attention.head_dim,
            },
            "vocab_size": shape.vocab,
            **parameters.metadata(),
        },
    )
    for name, function in {**operators.packers, **logits.kernels(shape.vocab)}.items():
        builder.add_func(function, name)
    return builder.finalize()


def check_tensors(model: MLCDirectory, parameters: Parameters) -> None:
    """Refuse a directory whose tensors are not those of its configuration."""
    for tensor in parameters.stored:
        entry = model.tensors.get(tensor.name)
        if entry is None:
            raise FormatError(
                f"{model.path}: tensor {tensor.name} is missing", hint="Convert the model again."
            )
        if (entry.shape, entry.dtype) != (tensor.shape, tensor.dtype):
            raise FormatError(
                f"{model.path}: tensor {tensor.name} is {entry.dtype} {list(entry.shape)}, "
                f"the configuration wants {tensor.dtype} {list(tensor.shape)}",
                hint="Convert the model again.",
            )
