"""The device that a library computes on: the processor or a GPU, and tensors in its memory.

GPU support is a library of its own beside TVM's runtime, which needs the GPU's driver. It is loaded only when
a library for that kind of GPU is, so that everything else works where no driver is.
"""

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.engine.runtime import libraries, runtime, shared_library, tensor_of
from appliance.errors import DeviceError
from appliance.hardware.memory import memory
from builder.compile import Kind

# DLPack's numbers (DLDeviceType).
TYPES: Mapping[Kind, int] = {"cpu": 1, "cuda": 2, "vulkan": 7, "metal": 8}
NAMES: Mapping[Kind, str] = {"cpu": "CPU", "cuda": "CUDA", "vulkan": "Vulkan", "metal": "Metal"}
# What TVM's runtime tells of a device (DeviceAttrKind in tvm/runtime/device_api.h).
EXISTS, AVAILABLE_MEMORY = 0, 15

WITHOUT = "Or compile the model for the processor: `--target cpu`."
WHEELS: Mapping[Kind, str] = {
    "cuda": "Install apache-tvm from PyPI.",
    "vulkan": "MLC-LLM's TVM has it: the wheel mlc-ai-nightly-cpu, from MLC-LLM's own index.",
    "metal": "On a Mac apache-tvm from PyPI has it.",
}
# CUDA's own runtime library, which the one of TVM's wheel is linked with; NVIDIA's wheel lies there.
CUDART, CUDART_WHEEL = "libcudart.so.13", "cu13/lib"


@dataclass(frozen=True)
class Device:
    """An opened device. Reading and filling tensors waits for what computes."""

    kind: Kind
    type: int

    @classmethod
    def open(cls, kind: Kind) -> "Device":
        """The first device of a kind.

        Raises:
            DeviceError: there is none, or a part of what drives it is missing; names the part.
        """
        device = cls(kind, TYPES[kind])
        if kind != "cpu":
            _load_support(kind)
            if not device._attribute(EXISTS):
                raise DeviceError(
                    f"no {NAMES[kind]} device answers", hint=f"Is its driver running? {WITHOUT}"
                )
        return device

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """An uninitialised tensor, aligned as the kernels need it."""
        ffi = runtime()
        allocate = ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        return allocate(ffi.Shape(list(shape)), ffi.dtype(dtype), ffi.device(self.kind, 0), None)

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        """A copy of `array` as a tensor."""
        if self.kind == "cpu":
            return tensor_of(array)
        tensor = self.empty(array.shape, str(array.dtype))
        self._copy("runtime.TVMTensorCopyFromBytes", tensor, np.ascontiguousarray(array))
        return tensor

    def array(self, tensor: Any) -> npt.NDArray[Any]:
        """A copy of a tensor."""
        if self.kind == "cpu":
            return np.array(np.from_dlpack(tensor))
        array = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self._copy("runtime.TVMTensorCopyToBytes", tensor, array)
        return array

    def available(self) -> int:
        """Bytes of memory that a model may take."""
        return memory().available if self.kind == "cpu" else int(self._attribute(AVAILABLE_MEMORY) or 0)

    def _copy(self, function: str, tensor: Any, array: npt.NDArray[Any]) -> None:
        address = ctypes.c_void_p(array.ctypes.data)
        runtime().get_global_func(function)(tensor, address, array.nbytes)

    def _attribute(self, which: int) -> Any:
        return runtime().get_global_func("runtime.GetDeviceAttr")(self.type, 0, which)


def _load_support(kind: Kind) -> None:
    """Load what drives a kind of GPU; at the second time nothing happens."""
    runtime()
    if kind == "cuda":
        _load_cuda()
    support = libraries() / shared_library(f"libtvm_runtime_{kind}")
    if support.exists():
        try:
            ctypes.CDLL(str(support))
        except OSError as error:
            raise DeviceError(f"TVM's {NAMES[kind]} support does not load: {error}", hint=WITHOUT) from error
    if runtime().get_global_func(f"device_api.{kind}", allow_missing=True) is None:
        raise DeviceError(
            f"the installed TVM drives no {NAMES[kind]} devices", hint=f"{WHEELS[kind]} {WITHOUT}"
        )


def _load_cuda() -> None:
    """Load NVIDIA's driver and CUDA's runtime library, so that TVM's finds them."""
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise DeviceError(
            f"NVIDIA's driver does not load: {error}", hint=f"Install the driver of the GPU. {WITHOUT}"
        ) from error
    spec = importlib.util.find_spec("nvidia")
    wheels = [] if spec is None else list(spec.submodule_search_locations or ())
    for place in (CUDART, *(str(Path(wheel) / CUDART_WHEEL / CUDART) for wheel in wheels)):
        try:
            ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
        except OSError:  # not there: the next place
            continue
        return
    raise DeviceError(
        f"CUDA's runtime library {CUDART} is not installed",
        hint=f"Run `pip install 'nvidia-cuda-runtime>=13,<14'`, or install CUDA 13. {WITHOUT}",
    )
