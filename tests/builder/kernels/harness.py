"""Compiles kernels for one instruction-set level and calls them with numpy arrays, guarding the outputs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import runtime

from builder.compile import targets
from builder.compile.bfloat16 import narrow_bfloat16, widen_bfloat16
from builder.compile.kernels.isa import Isa

GUARD = 64
"""Bytes around every output that a kernel must leave alone; also the alignment that vector code needs."""

FILL = 0xA5
"""What those bytes hold."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Out:
    """A tensor the kernel fills; it starts full of FILL, so that what is not written shows."""

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class InOut:
    """A tensor the kernel changes in place."""

    array: Array


class Library:
    """Compiled kernels of one level."""

    def __init__(self, level: targets.Level, kernels: dict[str, Any]) -> None:
        target: dict[str, Any] = {"kind": "llvm", "mcpu": level.mcpu, "mattr": list(level.mattr)}
        module = tvm.IRModule({str(kernel.attrs["global_symbol"]): kernel for kernel in kernels.values()})
        compiled = tvm.compile(module, tvm.target.Target(target))
        self._functions = {name: compiled[str(f.attrs["global_symbol"])] for name, f in kernels.items()}

    def __call__(self, name: str, *arguments: Any) -> list[Array]:
        """Call a kernel; the tensors it wrote, in order of its arguments."""
        written: list[tuple[Array, Array]] = []
        passed = []
        for argument in arguments:
            if isinstance(argument, Out | InOut | np.ndarray):
                whole, inner = _guarded(argument)
                passed.append(runtime.from_dlpack(inner))
                if not isinstance(argument, np.ndarray):
                    written.append((whole, inner))
            else:
                passed.append(argument)
        self._functions[name](*passed)
        for whole, inner in written:
            start = inner.ctypes.data - whole.ctypes.data
            assert (whole[:start] == FILL).all(), f"{name} wrote before its output"
            assert (whole[start + inner.nbytes :] == FILL).all(), f"{name} wrote past its output"
        return [inner for _whole, inner in written]


def level_of(isa: Isa) -> targets.Level:
    """The level of this machine that uses `isa`; skips the test where the CPU cannot run it."""
    for level in targets.LEVELS:
        if (level.arch, level.isa) == (targets.machine(), isa.name):
            missing = set(level.requires) - targets.cpu_features()
            if missing:
                pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
            return level
    pytest.skip(f"{isa.name} is not a level of {targets.machine()}")


def compiled(isa: Isa, kernels: dict[str, Any]) -> Library:
    """Kernels for the level that uses `isa`, or a skipped test."""
    return Library(level_of(isa), kernels)


def unpacked(words: Array) -> Array:
    """Nibbles of MLC's uint32 words, float32 [n, k]."""
    nibbles = words[:, :, None] >> (np.arange(8, dtype=np.uint32) * 4) & 15
    return nibbles.reshape(len(words), -1).astype(np.float32)


def dequantised(words: Array, scales: Array) -> Array:
    """(nibble - 7) * scale in float32; scales in uint16 are the bits of bfloat16."""
    factors = widen_bfloat16(scales) if scales.dtype == np.uint16 else scales.astype(np.float32)
    return np.asarray((unpacked(words) - 7) * np.repeat(factors, 32, axis=1))


def random_int4(rng: np.random.Generator, n: int, k: int, dtype: str) -> tuple[Array, Array]:
    """MLC's two tensors with every nibble value and scales over six orders of magnitude, of both signs.

    MLC writes neither nibble 15 nor negative scales; weights carried over from GGML's Q4_0 have both.
    bfloat16 scales are their bits, in uint16.
    """
    words = rng.integers(0, 2**32, (n, k // 8), dtype=np.uint32)
    scales = rng.uniform(-1, 1, (n, k // 32)) * 10.0 ** rng.integers(-6, 0, (n, k // 32))
    return words, narrow_bfloat16(scales.astype(np.float32)) if dtype == "bfloat16" else scales.astype(dtype)


def bit_planes(levels: Array) -> Array:
    """Levels 0..7 as the exact kernels hold them: uint32 [n, k/32, 3]."""
    blocks = levels.reshape(len(levels), -1, 2, 16).astype(np.uint32)
    low = ((blocks & 3) << (np.arange(16, dtype=np.uint32) * 2)).sum(axis=-1, dtype=np.uint32)
    high = (blocks.reshape(len(levels), -1, 32) >> 2) << np.arange(32, dtype=np.uint32)
    return np.concatenate([low, high.sum(axis=-1, dtype=np.uint32, keepdims=True)], axis=-1)


def _guarded(argument: Out | InOut | Array) -> tuple[Array, Array]:
    """Memory full of FILL, and within it an array aligned as TVM's own, with the argument's values if any."""
    source = argument.array if isinstance(argument, InOut) else argument
    dtype = np.dtype(source.dtype)
    nbytes = int(np.prod(source.shape)) * dtype.itemsize
    whole = np.full(nbytes + 3 * GUARD, FILL, dtype=np.uint8)
    start = GUARD + -whole.ctypes.data % GUARD
    inner = whole[start : start + nbytes].view(dtype).reshape(source.shape)
    if not isinstance(source, Out):
        inner[...] = source
    return whole, inner
