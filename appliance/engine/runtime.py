"""TVM's runtime libraries, without the `tvm` package, and the tensors they allocate.

The libraries' vector code needs tensors aligned to 64 bytes. The runtime allocates them so; numpy does not.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from appliance.errors import ModelLoadError


def runtime(threads: int = 0) -> Any:
    """Load TVM's runtime libraries, once, and return the `tvm_ffi` module.

    `threads` counts at the first call only, because the thread pool reads it when it starts; 0 means one per
    physical core that this process may use. A TVM_NUM_THREADS from outside wins.
    """
    # TVM's own default halves the count on x86, where it takes every second core for a hyper-thread.
    os.environ.setdefault("TVM_NUM_THREADS", str(threads or cores()))
    return _runtime()


def cores() -> int:
    """Physical cores that this process may use; all logical ones if the system does not tell them apart."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


@cache
def _runtime() -> Any:
    folder = libraries()
    import tvm_ffi  # loads its shared library; only a process that runs models pays for it

    for name in ("libtvm_runtime", "libtvm_runtime_extra"):
        ctypes.CDLL(str(folder / shared_library(name)), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def libraries() -> Path:
    """The folder of TVM's shared libraries.

    Raises:
        ModelLoadError: TVM is not installed.
    """
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError("TVM is not installed", hint="Run `pip install apache-tvm`.")
    return Path(next(iter(spec.submodule_search_locations))) / "lib"


def shared_library(name: str) -> str:
    """The file name of a shared library on this system."""
    return name + (".dylib" if sys.platform == "darwin" else ".so")


def empty(shape: Sequence[int], dtype: str) -> Any:
    """An uninitialised tensor in main memory, aligned as the kernels need it."""
    ffi = _runtime()
    allocate = ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    return allocate(ffi.Shape(list(shape)), ffi.dtype(dtype), ffi.device("cpu", 0), None)


def tensor_of(array: npt.NDArray[Any]) -> Any:
    """A copy of `array` as a tensor."""
    tensor = empty(array.shape, str(array.dtype))
    np.from_dlpack(tensor)[...] = array
    return tensor


def release_free_memory() -> None:
    """Give freed heap memory back to the system where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
