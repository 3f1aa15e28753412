"""The device a library computes on: the processor always, a GPU only where everything that drives it is."""

import ctypes
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from appliance.engine import device
from appliance.engine.device import Device
from appliance.engine.native import NativeModel
from appliance.engine.runtime import runtime
from appliance.errors import DeviceError
from builder.compile.library import manifest_of
from tests.compiled import golden, library


def has(name: str) -> bool:
    """Whether a shared library loads."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def test_tensors_go_to_the_processor_and_back() -> None:
    """Values, shape and dtype stay; a copy does not follow the tensor."""
    processor = Device.open("cpu")
    for dtype in ("float16", "float32", "int32", "uint32"):
        values = np.arange(12, dtype=dtype).reshape(3, 4)
        tensor = processor.tensor(values)
        copy = processor.array(tensor)
        np.from_dlpack(tensor)[...] = 0
        assert np.array_equal(copy, values)
        assert copy.dtype == values.dtype
    assert processor.available() > 2**20


@pytest.mark.skipif(has("libcuda.so.1"), reason="this machine has NVIDIA's driver")
def test_without_a_driver_the_error_says_so() -> None:
    """Loading fails by name, not by crash, and says what to do; the processor goes on."""
    with pytest.raises(DeviceError, match="NVIDIA's driver does not load") as caught:
        Device.open("cuda")
    assert "--target cpu" in caught.value.hint
    assert Device.open("cpu").available()


def test_without_cudas_runtime_library_the_error_names_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver alone is not enough for TVM's CUDA support."""

    def load(name: str, mode: int = 0) -> None:
        if name != "libcuda.so.1":
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(DeviceError, match=r"libcudart\.so\.13") as caught:
        device._load_cuda()
    assert "nvidia-cuda-runtime" in caught.value.hint


def test_a_library_for_a_device_that_tvm_does_not_drive_is_refused(tmp_path: Path) -> None:
    """The manifest says what computes; the engine looks for that and nothing else."""
    if runtime().get_global_func("device_api.vulkan", allow_missing=True) is not None:
        pytest.skip("this TVM drives Vulkan")
    model = golden("q4f16_1")
    source = library(model)
    path = shutil.copy(source, tmp_path)
    manifest = json.loads(manifest_of(source).read_text())
    arch = manifest["target"].partition("-")[0]
    manifest_of(Path(path)).write_text(json.dumps({**manifest, "target": f"{arch}-vulkan"}))
    with pytest.raises(DeviceError, match="drives no Vulkan devices") as caught:
        NativeModel.load(model, Path(path), context=64)
    assert "mlc-ai-nightly-cpu" in caught.value.hint
