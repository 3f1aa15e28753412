"""Turn a checkpoint into an MLC model directory.

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
from builder.compile.import_.checkpoint import Source
from builder.compile.import_.matching import check_dimensions, in_checkpoint_order
from builder.compile.import_.source import open_source
from builder.compile.mlc import CONFIG, MLCDirectory
from builder.compile.quantise import QUANTISATIONS, Form, Quantisation, quantise, rounded
from builder.compile.template import TEMPLATE_FILE
from builder.compile.writer import ShardWriter, new_directory
from builder.errors import FormatError, UnsupportedError

# Weights handled at once by one thread: fits the second-level cache in every intermediate form.
BLOCK = 2**18

Progress = Callable[[str, float], None]
Block = tuple[str, int, int]  # checkpoint tensor, first row, end row
T = TypeVar("T")


def convert(
    path: Path,
    out: Path,
    quantization: str,
    progress: Progress = lambda step, fraction: None,
    *,
    context_window_size: int | None = None,
    prefill_chunk_size: int | None = None,
    max_batch_size: int = 128,
) -> MLCDirectory:
    """Write the MLC directory `out` from the checkpoint at `path`, all of it or nothing.

    Weights are read and written in blocks: memory stays below the largest quantised tensor plus two shards.

    Args:
        path: a directory or file of any format that `open_source` knows.
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
    with open_source(path) as source, new_directory(out) as aside:
        check_dimensions(source)
        sizes = Sizes(context_window_size, prefill_chunk_size, max_batch_size)
        model = model_config(Fields(str(source.config_file), source.config), sizes)
        known = family(source.config["model_type"], str(source.config_file))
        decoder = known.decoder(Fields(f"{source.config_file}: model_config", model))
        parameters = in_checkpoint_order(decoder.parameters, source, decoder.unused)
        chat = chat_config(source.metadata, source.config, model, quantization)
        for name in (*TOKENIZER_FILES, TEMPLATE_FILE):
            if (source.metadata / name).is_file():
                shutil.copyfile(source.metadata / name, aside / name)
        write_weights(source, parameters, quantisation, ShardWriter(aside), progress)
        (aside / CONFIG).write_text(json.dumps(chat, indent=2), encoding="utf-8")
        MLCDirectory.open(aside)
    progress("done", 1.0)
    return MLCDirectory.open(out)


def write_weights(
    source: Source,
    parameters: list[Parameter],
    quantisation: Quantisation,
    writer: ShardWriter,
    progress: Progress,
) -> None:
    """Quantise and write all parameters.

    Raises:
        FormatError: a weight is not finite in the model dtype.
    """
    total = sum(math.prod(parameter.shape) for parameter in parameters)
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for parameter in parameters:
            progress(parameter.name, done / total)
            form = quantisation.form(parameter.role)
            write = _write_plain if form.bits is None else _write_quantised
            write(pool, source, parameter, form, writer)
            done += math.prod(parameter.shape)
    writer.close(total)


def _write_quantised(
    pool: ThreadPoolExecutor, source: Source, parameter: Parameter, form: Form, writer: ShardWriter
) -> None:
    """Write `q_weight` as it comes and `q_scale`, an eighth of its size, after it.

    A transposed matrix is held in memory in its quantised form: its first row needs all of the checkpoint's.
    """
    assert form.bits is not None
    bits = form.bits
    scales: list[npt.NDArray[Any]] = []

    def one(block: Block) -> tuple[npt.NDArray[np.uint32], npt.NDArray[Any]]:
        stored = source.groups(*block) if (bits, form.dtype) == (4, "float16") else None
        words, scale = stored or quantise(source.rows(*block), form.dtype, bits)
        if not np.isfinite(scale).all():
            raise _not_finite(source, block[0], form.dtype)
        return words, scale

    def words() -> Iterator[npt.NDArray[np.uint32]]:
        for block, scale in _on(pool, one, _blocks(parameter)):
            scales.append(scale)
            yield block

    q_weight, q_scale = form.tensors(parameter.name, parameter.shape)
    if form.layout == "KN":
        writer.add(q_weight.name, q_weight.dtype, q_weight.shape, _transposed(list(words())))
        writer.add(q_scale.name, q_scale.dtype, q_scale.shape, _transposed(scales))
    else:
        writer.add(q_weight.name, q_weight.dtype, q_weight.shape, words())
        writer.add(q_scale.name, q_scale.dtype, q_scale.shape, scales)


def _transposed(blocks: list[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """The matrix that `blocks` of rows make up, transposed, again in blocks of rows."""
    step = max(1, BLOCK // sum(len(block) for block in blocks))
    for start in range(0, blocks[0].shape[1], step):
        yield np.concatenate([block[:, start : start + step].T for block in blocks], axis=1)


def _write_plain(
    pool: ThreadPoolExecutor, source: Source, parameter: Parameter, form: Form, writer: ShardWriter
) -> None:
    """Write a parameter in the model dtype."""

    def one(block: Block) -> npt.NDArray[Any]:
        values = source.rows(*block)
        if parameter.offset:  # adding nothing would still turn -0 into 0
            values = values + np.float32(parameter.offset)
        values = rounded(values, form.dtype)
        if not np.isfinite(values).all():
            raise _not_finite(source, block[0], form.dtype)
        return values

    writer.add(parameter.name, form.dtype, parameter.shape, _on(pool, one, _blocks(parameter)))


def _not_finite(source: Source, name: str, dtype: str) -> FormatError:
    hint = "The checkpoint is damaged, or was saved from a failed training run."
    if dtype == "float16":
        hint += " Weights above 65504 need a format with another dtype, such as q4bf16_1 or q0f32."
    return FormatError(f"{source.tensors[name].file}: {name} has NaN or infinity as {dtype}", hint=hint)


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
