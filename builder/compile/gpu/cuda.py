"""CUDA source to machine code, here, so that the device that loads a library needs no CUDA compiler.

TVM's wheel generates CUDA source. Where its CUDA runtime is missing, as on most machines that compile, it
would embed that source and leave the rest to the device; where it is there, it would ask for NVIDIA's
run-time compiler. Here NVIDIA's nvcc compiles, and the library holds a fatbin: machine code for one compute
capability, and PTX that drivers compile for later ones.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tvm_ffi

from builder.errors import BuildError, ToolMissingError

# Makes TVM embed what its code generator returns, whether a CUDA runtime is there or not.
EMBED = "TVM_COMPILE_FORCE_FALLBACK"
# Called by TVM with the source it has generated; what it returns is embedded instead.
HOOK = "tvm_callback_cuda_postproc"
# TVM's serialised module: the kind and the size of the rest, then the format of the code. Strings follow
# their length. A runtime compiles what has the format "cuda" and hands everything else to the driver.
LABEL = re.compile(rb"(\x04\0{7}cuda.{8}\x04\0{7})cuda", re.DOTALL)
COMPILED = b"bin\0"

PLACES = ("/usr/local/cuda/bin", "/opt/cuda/bin")


def find_nvcc() -> str:
    """NVIDIA's compiler, on PATH or where its installers put it.

    Raises:
        ToolMissingError: it is not installed.
    """
    path = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(PLACES))
    if path is None:
        raise ToolMissingError(
            "no CUDA compiler found: nvcc is not on PATH",
            hint="Install NVIDIA's CUDA toolkit, or compile on a machine that has it and copy the library.",
        )
    return path


def compile_source(source: str, arch: str) -> bytes:
    """A fatbin of CUDA source for the compute capability `arch` ("sm_87").

    Raises:
        ToolMissingError: no nvcc.
        BuildError: nvcc failed; the message has its first complaint.
    """
    number = arch.removeprefix("sm_")
    # Code for an exact architecture ("sm_90a") has no PTX that runs elsewhere.
    code = f"[sm_{number},compute_{number}]" if number.isdigit() else f"sm_{number}"
    nvcc = find_nvcc()
    with tempfile.TemporaryDirectory(prefix="hob-cuda-") as folder:
        file, fatbin = Path(folder, "kernels.cu"), Path(folder, "kernels.fatbin")
        file.write_text(source, encoding="utf-8")
        options = ("-O3", "-std=c++17", "--fatbin", f"-gencode=arch=compute_{number},code={code}")
        command = [nvcc, *options, "-o", str(fatbin), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if "error" in line or "fatal" in line]
            raise BuildError(
                f"nvcc failed for {arch}: {(said or [f'exit code {done.returncode}'])[0]}",
                hint="A newer or older CUDA toolkit may know this compute capability.",
            )
        return fatbin.read_bytes()


@contextmanager
def compiler(arch: str) -> Iterator[None]:
    """Have TVM embed machine code for `arch` in the modules that it generates meanwhile.

    Raises:
        ToolMissingError: no nvcc.
        BuildError: nvcc failed.
    """
    find_nvcc()  # an error inside TVM would arrive as TVM's
    failures: list[BuildError] = []

    def embed(source: str, _target: object) -> bytes:
        try:
            return compile_source(source, arch)
        except BuildError as error:
            failures.append(error)
            raise

    before = os.environ.get(EMBED)
    os.environ[EMBED] = "1"
    tvm_ffi.register_global_func(HOOK, embed, override=True)
    try:
        yield
    except Exception as error:
        if failures:
            raise failures[0] from error
        raise
    finally:
        tvm_ffi.registry.remove_global_func(HOOK)
        if before is None:
            del os.environ[EMBED]
        else:
            os.environ[EMBED] = before


def mark_compiled(objects: Sequence[Path]) -> None:
    """Label the code in the object files as compiled: TVM takes for source whatever its generator returns."""
    marked = 0
    for path in objects:
        data = path.read_bytes()
        labelled, count = LABEL.subn(rb"\g<1>" + COMPILED, data)
        if count:
            path.write_bytes(labelled)
        marked += count
    assert marked == 1, f"{marked} CUDA modules in the object files"
