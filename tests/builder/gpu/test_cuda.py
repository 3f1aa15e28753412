"""CUDA libraries are compiled without a GPU: MLC's functions, and machine code for the driver."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.engine.runtime import libraries
from builder.compile import compile_model, graph
from builder.compile.gpu import cuda
from builder.compile.library import check
from builder.compile.targets import machine, parse_target
from builder.errors import BuildError, ToolMissingError
from tests.builder.gpu.models import make

nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="nvcc, NVIDIA's CUDA compiler, is not installed"
)

FATBIN = b"\x50\xed\x55\xba"  # the magic number 0xBA55ED50
# MLC-LLM's names of what a chat model's library offers.
FUNCTIONS = (
    *(
        f"{name}{end}"
        for name in ("prefill", "decode", "batch_prefill", "batch_decode", "batch_verify")
        for end in ("", "_to_last_hidden_states")
    ),
    *("_metadata", "embed", "get_logits", "batch_select_last_hidden_states", "alloc_embedding_tensor"),
    *("softmax_with_temperature", "create_tir_paged_kv_cache"),
)
KERNELS = (
    *("apply_penalty_inplace", "apply_logit_bias_inplace", "apply_bitmask_inplace"),
    *("gather_probs", "scatter_probs", "gather_hidden_states", "scatter_hidden_states"),
)


def fatbin(library: Path) -> bytes:
    """The one fatbin in a library; its header has its size."""
    data = library.read_bytes()
    assert data.count(FATBIN) == 1
    start = data.index(FATBIN)
    return data[start : start + 16 + int.from_bytes(data[start + 8 : start + 16], "little")]


# A Jetson Orin, and a card in a machine like this one.
TARGETS = {"llama": "aarch64-cuda-sm_87", "qwen3": f"{machine()}-cuda-sm_89"}


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's library, compiled here."""
    place = tmp_path_factory.mktemp("cuda")
    model = make(request.param, place, "q4f16_1")
    return compile_model(model, place / "lib", target=parse_target(TARGETS[request.param]), kernels="fast")


@nvcc
@pytest.mark.slow
def test_the_library_has_mlcs_functions_and_machine_code(compiled: Path, tmp_path: Path) -> None:
    """Names are MLC's; code is a fatbin for the GPU that was named, and labelled as one."""
    data = compiled.read_bytes()
    for name in (*FUNCTIONS, *KERNELS):
        assert name.encode() in data, name
    assert cuda.LABEL.search(data) is None
    assert b"__global__" not in fatbin(compiled)
    assert check(compiled)["target"] in TARGETS.values()
    assert b"q_weight" in data  # MLC's layout, which nothing repacks
    found = re.search(rb'\{"model_type".*?"memory_usage": \{.*?\}\}', data, re.DOTALL)
    assert found is not None
    steps = json.loads(found[0])["packing"]
    assert all(step["function"] is None for step in steps)


@nvcc
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cuobjdump") is None, reason="cuobjdump is not installed")
def test_every_kernel_is_in_the_fatbin(compiled: Path, tmp_path: Path) -> None:
    """Machine code for one GPU and PTX for later ones, with every kernel that the host code calls."""
    (tmp_path / "kernels.fatbin").write_bytes(fatbin(compiled))

    def dump(*options: str) -> str:
        command = ["cuobjdump", *options, str(tmp_path / "kernels.fatbin")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    device = check(compiled)["target"].rpartition("-")[2]
    assert re.findall(r"\.(sm_\w+)\.cubin", dump("-lelf")) == [device]
    assert re.findall(r"\.(sm_\w+)\.ptx", dump("-lptx")) == [device]
    inside = set(re.findall(r"Function (\w+):", dump("--dump-resource-usage")))
    around = compiled.read_bytes().replace(fatbin(compiled), b"")
    called = {name.decode() for name in re.findall(rb"(?<!\w)[a-z_]\w*_kernel(?:_\d+)?(?!\w)", around)}
    assert len(inside) > 40
    assert inside == called


LOAD = """
import sys
from appliance.engine.device import Device
from appliance.engine.runtime import runtime
from appliance.errors import DeviceError

try:
    Device.open("cuda")
except DeviceError as error:
    print(error)
ffi = runtime()
module = ffi.load_module(sys.argv[1], keep_module_alive=True)
cuda = module.imports[0].imports[0]
print(cuda.kind, all(cuda.get_function(name) is not None for name in sys.argv[2:]))
print(ffi.get_global_func("tvm_callback_cuda_compile", allow_missing=True))
"""


@nvcc
@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc, which makes a driver without GPU, is not installed"
)
def test_tvms_cuda_runtime_takes_the_library_as_it_is(compiled: Path, tmp_path: Path) -> None:
    """With CUDA's real runtime and a driver that finds no GPU: the library loads, its kernels are there, and
    nothing is asked to compile.
    """
    if not check(compiled)["target"].startswith(machine()):
        pytest.skip("a library for another processor")
    found = Path(shutil.which("nvcc") or "").resolve()
    toolkits = [found.parents[1] / "lib64", Path("/usr/local/cuda/lib64")]
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(libraries() / "libtvm_runtime_cuda.so")],
        capture_output=True,
        text=True,
        check=True,
    )
    names = sorted(set(re.findall(r" (cu[A-Z]\w*)$", symbols.stdout, re.MULTILINE)))
    (tmp_path / "driver.c").write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in names))
    driver = ["-Wl,-soname,libcuda.so.1", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.c")]
    subprocess.run(["gcc", "-shared", "-fPIC", *driver], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, [tmp_path, *toolkits]))}
    command = [sys.executable, "-c", LOAD, str(compiled), "lookup_kernel", "linear_kernel"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "libcudart" in done.stdout:
        pytest.skip("CUDA's runtime library is not installed")
    assert done.stdout.splitlines() == ["no CUDA device answers", "cuda True", "None"], done.stderr


@nvcc
def test_source_that_does_not_compile_is_an_error() -> None:
    """nvcc's complaint comes through; so does a compute capability that it does not know."""
    with pytest.raises(BuildError, match="not allowed"):
        cuda.compile_source("__global__ void f( {}", "sm_90")
    with pytest.raises(BuildError, match="sm_12"):
        cuda.compile_source("__global__ void f() {}", "sm_12")


@nvcc
@pytest.mark.parametrize("arch", ["sm_89", "sm_90a"])
def test_other_gpus(arch: str) -> None:
    """Each compute capability has code of its own, those for one exact GPU too."""
    assert cuda.compile_source('extern "C" __global__ void f(int* x) { *x = 1; }', arch).startswith(FATBIN)


def test_without_nvcc_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is compiled."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(cuda, "PLACES", ())
    with pytest.raises(ToolMissingError, match="nvcc") as caught:
        graph.check_target(parse_target("cuda-sm_87"))
    assert "CUDA toolkit" in caught.value.hint


def test_code_is_labelled_once(tmp_path: Path) -> None:
    """Only the format of TVM's module changes, not the kind, nor anything that looks alike."""
    size = (1000).to_bytes(8, "little")
    text = b"\x04" + bytes(7) + b"cuda"
    file = tmp_path / "devc.o"
    file.write_bytes(b"cuda" + text + size + text + b"the rest, " + text)
    cuda.mark_compiled([file])
    assert file.read_bytes() == b"cuda" + text + size + text[:8] + b"bin\0" + b"the rest, " + text
    with pytest.raises(AssertionError, match="0 CUDA modules"):
        cuda.mark_compiled([file])
