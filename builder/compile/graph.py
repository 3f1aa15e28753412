"""From a model directory's description to object files: builds the Relax module and runs TVM's compiler."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from builder.compile.cpu import CpuBackend
from builder.compile.families import family
from builder.compile.families.decoder import Decoder
from builder.compile.families.fields import Fields
from builder.compile.functions import Limits, emit_functions
from builder.compile.gpu import cuda, lowering
from builder.compile.gpu.backend import GpuBackend
from builder.compile.kernels import logits
from builder.compile.kernels.isa import ISAS
from builder.compile.library import Kernels
from builder.compile.mlc import MLCDirectory
from builder.compile.operators import Backend
from builder.compile.packing import Packing
from builder.compile.quantise import QUANTISATIONS, Quantisation
from builder.compile.targets import Target
from builder.errors import FormatError, UnsupportedError

# Rows of the largest prefill. More would cost memory for intermediate results and gain little speed.
PREFILL_CHUNK = 256
GPU_PREFILL_CHUNK = 1024
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
        UnsupportedError: something in the configuration, or TVM cannot make code for the target.
        ToolMissingError: no CUDA compiler, for a CUDA target.
    """
    check_target(target)
    tvm_target = tvm.target.Target(dict(target.tvm()))
    progress("build graph", 0.1)
    decoder = read_decoder(model)
    backend = choose_backend(decoder, QUANTISATIONS[model.quantization], target, kernels)
    chunk = PREFILL_CHUNK if target.kind == "cpu" else GPU_PREFILL_CHUNK
    module = build_module(model, decoder, backend, chunk)
    progress("lower graph", 0.2)
    lowered = lower(module, tvm_target)
    lowered.update(lower(metadata_module(module, memory_usage(lowered)), tvm_target))
    progress("compile", 0.3)
    with cuda.compiler(target.device) if target.kind == "cuda" else nullcontext():
        executable = tvm.compile(lowered, tvm_target, relax_pipeline=tvm.transform.Sequential([]))
    progress("write objects", 0.9)
    objects: list[Path] = []
    executable.export_library(
        str(scratch / "unused"),
        workspace_dir=str(scratch),
        fcompile=lambda _output, files, **_options: objects.extend(map(Path, files)),
    )
    if target.kind == "cuda":
        cuda.mark_compiled(objects)
    return objects


def check_target(target: Target) -> None:
    """Refuse a target that this machine cannot make code for, or link it, before the long part.

    Raises:
        UnsupportedError: TVM cannot; the hint says what can.
        ToolMissingError: no CUDA compiler, for a CUDA target.
    """
    if target.kind == "cuda":
        cuda.find_nvcc()
    if target.kind == "metal" and sys.platform != "darwin":
        raise UnsupportedError(
            "libraries for Metal are linked on a Mac",
            hint="Compile the model there; its apache-tvm has Metal.",
        )
    builds = target.kind == "cpu" or tvm.get_global_func(f"target.build.{target.kind}", allow_missing=True)
    if not builds:
        raise UnsupportedError(
            f"the installed TVM makes no {target.kind.capitalize()} code",
            hint="MLC-LLM's TVM does: the wheel mlc-ai-nightly-cpu, from MLC-LLM's own index.",
        )


def read_decoder(model: MLCDirectory) -> Decoder:
    """Weights and graph of a model."""
    structure = Fields("model_config", model.config["model_config"])
    return family(model.model_type, "model_config").decoder(structure)


def build_module(model: MLCDirectory, decoder: Decoder, backend: Backend, chunk: int) -> Any:
    """The Relax module: MLC's functions but `_metadata`, and the kernels exported by their plain names.

    Its attribute "metadata" holds what `_metadata` will say, as JSON.

    Args:
        chunk: rows of the largest prefill, where the model's configuration does not want fewer.
    """
    config = model.config
    packing = Packing(decoder.parameters, QUANTISATIONS[model.quantization], backend.pack)
    check_tensors(model, packing)
    chunk = min(chunk, int(config["prefill_chunk_size"]))
    builder = relax.BlockBuilder()
    emit_functions(builder, decoder, packing, backend, Limits(chunk, MAX_BATCH))
    for name, function in {**logits.kernels(decoder.vocab), **backend.kernels()}.items():
        builder.add_func(function, name)
    attention = decoder.attention
    metadata = {
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
        "active_vocab_size": int(config.get("active_vocab_size", decoder.vocab)),
        "model_task": "chat",
        "kv_cache": {
            "num_hidden_layers": attention.layers,
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
        },
        "vocab_size": decoder.vocab,
        "activation_dtype": backend.dtype,
        **packing.metadata(),
    }
    return builder.finalize().with_attr("metadata", json.dumps(metadata))


def choose_backend(decoder: Decoder, quantisation: Quantisation, target: Target, kernels: Kernels) -> Backend:
    """The way to compute that a target and a weight format call for."""
    if target.kind == "cpu":
        return CpuBackend(ISAS[target.isa], decoder.attention, quantisation, fast=kernels == "fast")
    return GpuBackend(tvm.target.Target(dict(target.tvm())), decoder.attention, quantisation, decoder.vocab)


def lower(module: Any, target: Any) -> Any:
    """Run TVM's passes from Relax down to calls of the virtual machine."""
    if target.kind.name != "llvm":
        return without_weight_checks(lowering.lower(module, target))
    with target, tvm.transform.PassContext(opt_level=3):
        return without_weight_checks(relax.get_default_pipeline(target)(module))


def without_weight_checks(lowered: Any) -> Any:
    """Drop the checks of every weight's type and shape that TVM puts at the start of every function.

    A token would pay for hundreds of them. The loader allocates the weights with the shapes that the
    library's own metadata gives, so they cannot fail.
    """
    checks = {"vm.builtin.check_tensor_info", "vm.builtin.check_tuple_info", "vm.builtin.match_shape"}

    def checked(binding: Any) -> Any | None:
        """The variable that a binding does nothing but check."""
        value = binding.value
        is_check = isinstance(value, relax.Call) and getattr(value.op, "global_symbol", "") in checks
        return value.args[0] if is_check else None

    for name, function in lowered.functions.items():
        if not isinstance(function, relax.Function):
            continue
        weights = {p for p in function.params if p.name.startswith("packed_params")}
        bindings = [binding for block in function.body.blocks for binding in block.bindings]
        for binding in bindings:
            if isinstance(binding.value, relax.TupleGetItem) and binding.value.tuple_value in weights:
                weights.add(binding.var)
        dropped = {v for b in bindings if (v := checked(b)) is not None and v in weights}
        kept = [
            b
            for b in bindings
            # Elements that were taken out of the tuple for a check are not used otherwise.
            if b.var not in dropped and ((v := checked(b)) is None or v not in dropped)
        ]
        body = relax.SeqExpr([relax.BindingBlock(kept)], function.body.body)
        lowered[name] = relax.Function(
            function.params, body, function.ret_ty, function.is_pure, function.attrs
        )
    return lowered


def metadata_module(module: Any, usage: dict[str, int]) -> Any:
    """A module with the one function `_metadata() -> str`."""
    metadata = {**json.loads(module.attrs["metadata"]), "memory_usage": usage}
    builder = relax.BlockBuilder()
    with builder.function("_metadata", []):
        builder.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
    return builder.finalize()


def memory_usage(lowered: Any) -> dict[str, int]:
    """Bytes of intermediate results that each function of a lowered module plans for, its callees' included.

    Results that are returned count where their size is known.
    """
    functions = {name: f for name, f in lowered.functions.items() if isinstance(f, relax.Function)}
    usage: dict[Any, int] = {}

    def measure(variable: Any) -> int:
        if variable not in usage:
            usage[variable] = 0
            calls: list[Any] = []
            relax.analysis.post_order_visit(
                functions[variable], lambda e: calls.append(e) if isinstance(e, relax.Call) else None
            )
            usage[variable] = sum(map(cost, calls))
        return usage[variable]

    def cost(call: Any) -> int:
        if isinstance(call.op, tvm.ir.GlobalVar):
            return measure(call.op) if call.op in functions else 0
        if getattr(call.op, "name", "") == "relax.vm.alloc_storage" and isinstance(
            call.args[0], relax.ShapeExpr
        ):
            return int(call.args[0].values[0])
        return 0

    return {variable.name_hint: measure(variable) for variable in functions}


def check_tensors(model: MLCDirectory, packing: Packing) -> None:
    """Refuse a directory whose tensors are not those of its configuration."""
    for tensor in packing.stored:
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
