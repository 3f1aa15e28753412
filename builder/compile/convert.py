"""Turn a Hugging Face checkpoint into an MLC model directory.

What MLC-LLM's `convert_weight` and `gen_config` write for the same checkpoint, byte for byte, except that
the conversation template and its token ids come from the checkpoint's own tokenizer.
"""

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from builder.compile.families import family, model_config
from builder.compile.families.fields import Fields, Sizes
from builder.compile.families.parameters import Parameter
from builder.compile.import_.chat import TOKENIZER_FILES, chat_config
from builder.compile.import_.safetensors import Checkpoint
from builder.compile.mlc import CONFIG, MLCDirectory, read_json
from builder.compile.quantise import GROUP, QUANTISATIONS, Quantisation, quantise
from builder.compile.template import TEMPLATE_FILE
from builder.compile.writer import ShardWriter, new_directory
from builder.errors import FormatError, UnsupportedError

# Weights handled at once by one thread: fits the second-level cache in every intermediate form.
BLOCK = 2**18

Progress = Callable[[str, float], None]
Block = tuple[str, int, int]  # checkpoint tensor, first row, end row
T = TypeVar("T")


def convert(
    hf_dir: Path,
    out: Path,
    quantization: str,
    progress: Progress = lambda step, fraction: None,
    *,
    context_window_size: int | None = None,
    prefill_chunk_size: int | None = None,
    max_batch_size: int = 128,
) -> MLCDirectory:
    """Write the MLC directory `out` from the checkpoint in `hf_dir`, all of it or nothing.

    Weights are read and written in blocks: memory stays below the largest quantised tensor plus two shards.

    Args:
        quantization: a name in `QUANTISATIONS`.
        progress: called with a step's name and the fraction done, 0 to 1.
        context_window_size: tokens of context; None takes the checkpoint's own.
        prefill_chunk_size: tokens per prefill step; None takes MLC-LLM's default, at most 8192.

    Raises:
        UnsupportedError: an architecture, option or quantisation that Hob does not know.
        FormatError: the checkpoint is incomplete or damaged, or a weight is not finite.
        BuildError: `out` exists or cannot be written.
    """
    if quantization not in QUANTISATIONS:
        raise UnsupportedError(
            f"quantization {quantization!r} is not supported", hint=f"Supported: {', '.join(QUANTISATIONS)}."
        )
    quantisation = QUANTISATIONS[quantization]
    if not hf_dir.is_dir():
        raise FormatError(f"{hf_dir} is not a directory", hint="Give the directory that holds config.json.")
    source = read_json(hf_dir / "config.json")
    sizes = Sizes(context_window_size, prefill_chunk_size, max_batch_size)
    model = model_config(Fields(str(hf_dir / "config.json"), source), sizes)
    chat = chat_config(hf_dir, source, model, quantization)
    decoder = family(chat["model_type"], CONFIG).decoder(Fields(CONFIG, model))
    with Checkpoint.open(hf_dir) as checkpoint, new_directory(out) as aside:
        parameters = in_checkpoint_order(decoder.parameters, checkpoint)
        for name in (*TOKENIZER_FILES, TEMPLATE_FILE):
            if (hf_dir / name).is_file():
                shutil.copyfile(hf_dir / name, aside / name)
        write_weights(checkpoint, parameters, quantisation, ShardWriter(aside), progress)
        (aside / CONFIG).write_text(json.dumps(chat, indent=2), encoding="utf-8")
        MLCDirectory.open(aside)
    progress("done", 1.0)
    return MLCDirectory.open(out)


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
                f"{checkpoint.tensors[name].file}: tensor {name} has no place in a model of this family",
                hint="The checkpoint is of a variant that would come out wrong.",
            )
    return list(dict.fromkeys(owner[name] for name in checkpoint.tensors if name in owner))


def write_weights(
    checkpoint: Checkpoint,
    parameters: list[Parameter],
    quantisation: Quantisation,
    writer: ShardWriter,
    progress: Progress,
) -> None:
    """Quantise and write all parameters.

    Raises:
        FormatError: a weight is not finite in the model dtype.
    """
    dtype = quantisation.dtype
    total = sum(math.prod(parameter.shape) for parameter in parameters)
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for parameter in parameters:
            progress(parameter.name, done / total)
            if quantisation.form(parameter.role).bits:
                _write_quantised(pool, checkpoint, parameter, dtype, writer)
            else:
                _write_plain(pool, checkpoint, parameter, dtype, writer)
            done += math.prod(parameter.shape)
    writer.close(total)


def _write_quantised(
    pool: ThreadPoolExecutor, checkpoint: Checkpoint, parameter: Parameter, dtype: str, writer: ShardWriter
) -> None:
    """Write `q_weight` as it comes and `q_scale`, an eighth of its size, after it."""
    scales: list[npt.NDArray[Any]] = []

    def one(block: Block) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any]]:
        words, scale = quantise(checkpoint.rows(*block), dtype)
        if not np.isfinite(scale).all():
            raise _not_finite(checkpoint, block[0], dtype)
        return words, scale

    def words() -> Iterator[npt.NDArray[np.uint32]]:
        for block, scale in _on(pool, one, _blocks(parameter)):
            scales.append(scale)
            yield block

    rows, width = parameter.shape
    groups = -(-width // GROUP)
    stem = parameter.name.removesuffix("weight")
    writer.add(f"{stem}q_weight", "uint32", (rows, 4 * groups), words())
    writer.add(f"{stem}q_scale", dtype, (rows, groups), scales)


def _write_plain(
    pool: ThreadPoolExecutor, checkpoint: Checkpoint, parameter: Parameter, dtype: str, writer: ShardWriter
) -> None:
    """Write a parameter in the model dtype."""

    def one(block: Block) -> npt.NDArray[Any]:
        with np.errstate(over="ignore"):
            values = (checkpoint.rows(*block) + np.float32(parameter.offset)).astype(dtype)
        if not np.isfinite(values).all():
            raise _not_finite(checkpoint, block[0], dtype)
        return values

    writer.add(parameter.name, dtype, parameter.shape, _on(pool, one, _blocks(parameter)))


def _not_finite(checkpoint: Checkpoint, name: str, dtype: str) -> FormatError:
    hint = "The checkpoint is damaged, or was saved from a failed training run."
    if dtype == "float16":
        hint += " Weights above 65504 need q4f32_1 or q0f32."
    return FormatError(f"{checkpoint.tensors[name].file}: {name} has NaN or infinity as {dtype}", hint=hint)


def _blocks(parameter: Parameter) -> Iterator[Block]:
    """Cut a parameter into blocks of about `BLOCK` weights, none across two checkpoint tensors."""
    for name, shape in parameter.sources:
        if len(shape) == 1:
            yield name, 0, 1
            continue
        step = max(1, BLOCK // shape[1])
        for start in range(0, shape[0], step):
            yield name, start, min(start + step, shape[0])


def _on(pool: ThreadPoolExecutor, work: Callable[[Block], T], blocks: Iterable[Block]) -> Iterator[T]:
    """Map `work` over `blocks` in order, a few blocks ahead and no more, so that memory stays bounded."""
    ahead: deque[Future[T]] = deque()
    try:
        for block in blocks:
            ahead.append(pool.submit(work, block))
            if len(ahead) > 16:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()
