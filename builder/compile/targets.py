"""What a library is compiled for: an instruction-set level, not one exact CPU, or a kind of GPU.

One library per level serves every CPU that has it, so a card image can carry libraries for machines that
the builder has never seen. Detection reads the operating system's own feature list and needs no compiler.
A GPU's library has code for the GPU, and for the CPU beside it code that any of its architecture runs.
"""

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from builder.errors import UnsupportedError

Isa = Literal["avx512vnni", "avx2", "neondot", "generic"]


@dataclass(frozen=True)
class Level:
    """An instruction-set level.

    Attributes:
        isa: name of the level; kernels are chosen by it.
        arch: machine name as `platform.machine()` spells it on Linux.
        requires: feature names, as /proc/cpuinfo spells them, that a CPU must have to run the code.
        mcpu: LLVM's name of the level.
        mattr: LLVM features on top of `mcpu`.
    """

    isa: Isa
    arch: str
    requires: tuple[str, ...]
    mcpu: str
    mattr: tuple[str, ...] = ()


# Best first within an architecture; the last row of each runs on every CPU of it.
LEVELS = (
    Level(
        "avx512vnni",
        "x86_64",
        (
            "avx512f",
            "avx512bw",
            "avx512cd",
            "avx512dq",
            "avx512vl",
            "avx512_vnni",
            "f16c",
            "fma",
            "avx2",
            "bmi2",
        ),
        "x86-64-v4",
        ("+avx512vnni",),
    ),
    Level("avx2", "x86_64", ("avx2", "fma", "f16c", "bmi2"), "x86-64-v3"),
    Level("generic", "x86_64", (), "x86-64"),
    Level("neondot", "aarch64", ("asimddp",), "generic", ("+dotprod",)),
    Level("generic", "aarch64", (), "generic"),
)

_ARCH_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


Kind = Literal["cpu", "cuda", "vulkan", "metal"]
GPU_KINDS: tuple[Kind, ...] = ("cuda", "vulkan", "metal")

# Compute capabilities of NVIDIA's boards with a 64-bit Arm CPU: Nano, TX2, Xavier, Orin, Thor.
JETSONS = ("sm_53", "sm_62", "sm_72", "sm_87", "sm_101", "sm_110")
CUDA_ARCH = re.compile(r"sm_\d{2,3}[af]?")


@dataclass(frozen=True)
class Target:
    """A compilation target.

    Attributes:
        kind: the device that computes.
        isa: instruction-set level of the CPU code; kernels of CPU libraries are chosen by it.
        arch: "x86_64", "aarch64", or what the machine calls itself.
        requires: features a CPU must have, as /proc/cpuinfo spells them.
        mcpu, mattr: LLVM's names of the level.
        device: which GPU, where the kind does not say enough: "sm_87" for CUDA.
    """

    kind: Kind
    isa: Isa
    arch: str
    requires: tuple[str, ...]
    mcpu: str
    mattr: tuple[str, ...] = ()
    device: str = ""

    @property
    def key(self) -> str:
        """Stable readable name, used in file names: "x86_64-avx2", "aarch64-cuda-sm_87"."""
        parts = (self.isa,) if self.kind == "cpu" else (self.kind, self.device)
        return "-".join(part for part in (self.arch, *parts) if part)

    def tvm(self, cores: int | None = None) -> Mapping[str, Any]:
        """The target as TVM's dictionary; a GPU's has the CPU's as "host".

        `cores` is a hint to schedules, not part of the identity.
        """
        cpu: dict[str, Any] = {"kind": "llvm", "mcpu": self.mcpu}
        if self.mattr:
            cpu["mattr"] = list(self.mattr)
        if self.arch != machine():
            cpu["mtriple"] = f"{self.arch}-unknown-linux-gnu"
        if cores is not None:
            cpu["num-cores"] = cores
        return cpu if self.kind == "cpu" else {**self._gpu(), "host": cpu}

    def _gpu(self) -> dict[str, Any]:
        """What schedules may count on: what every GPU of the kind has."""
        gpu: dict[str, Any] = {"kind": self.kind, "max_threads_per_block": 1024, "thread_warp_size": 32}
        match self.kind:
            case "cuda":
                gpu |= {"arch": self.device, "max_shared_memory_per_block": 48 * 1024}
            case "metal":
                gpu |= {"max_shared_memory_per_block": 32 * 1024, "max_function_args": 31}
            case _:  # Vulkan's own guarantees are lower; every GPU that outruns a CPU has these
                gpu |= {"max_threads_per_block": 256, "max_shared_memory_per_block": 32 * 1024}
                gpu |= {"thread_warp_size": 1, "supports_float16": True, "supports_16bit_buffer": True}
        return gpu


def machine() -> str:
    """This machine's architecture, spelled as on Linux."""
    name = platform.machine().lower()
    return _ARCH_ALIASES.get(name, name)


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Features of this CPU as the Linux kernel names them; empty where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return frozenset()
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def choose(arch: str, features: frozenset[str]) -> Target:
    """The best level of `arch` whose features are all there; unknown architectures get plain vector code."""
    for level in LEVELS:
        if level.arch == arch and features.issuperset(level.requires):
            return _target(level)
    return Target("cpu", "generic", arch, (), "generic")


def detect_target() -> Target:
    """The best target this machine can run."""
    return choose(machine(), cpu_features())


def parse_target(name: str) -> Target:
    """Read a `--target` value.

    "auto" and "cpu" are this machine's CPU, "cpu-<isa>" one of its levels, "aarch64-generic" a level of any
    architecture. "cuda-sm_87" names a GPU by its compute capability and "cuda" the one of this machine;
    "vulkan" and "metal" need no name. A GPU's CPU is that of this machine, or a Jetson's own;
    "aarch64-cuda-sm_90" says which.

    Raises:
        UnsupportedError: no such target; the hint lists those there are.
    """
    if name in ("auto", "cpu"):
        return detect_target()
    arch, _, rest = name.partition("-")
    if arch in GPU_KINDS:
        return _gpu_target(name, "")
    if rest.partition("-")[0] in GPU_KINDS and arch in {level.arch for level in LEVELS}:
        return _gpu_target(rest, arch)
    wanted = (machine() if arch == "cpu" else arch, rest)
    for level in LEVELS:
        if (level.arch, level.isa) == wanted:
            return _target(level)
    if wanted == (machine(), "generic"):
        return choose(machine(), frozenset())
    raise _unknown(name)


def cuda_device() -> str:
    """The compute capability of this machine's first NVIDIA GPU, such as "sm_87".

    Raises:
        UnsupportedError: the driver's nvidia-smi is not there, or names none.
    """
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        capability = done.stdout.partition("\n")[0].strip().replace(".", "")
        if done.returncode == 0 and capability.isdigit():
            return f"sm_{capability}"
    raise UnsupportedError(
        "target 'cuda': this machine has no NVIDIA GPU that nvidia-smi knows",
        hint="Name the GPU to compile for by its compute capability: cuda-sm_87 is a Jetson Orin.",
    )


def _gpu_target(name: str, arch: str) -> Target:
    """A GPU target; `arch` of the CPU beside it, "" for the usual one."""
    kind = next(kind for kind in GPU_KINDS if kind == name.partition("-")[0])
    device = name.removeprefix(kind).removeprefix("-")
    if kind == "cuda":
        device = device or cuda_device()
        if not CUDA_ARCH.fullmatch(device):
            raise _unknown(name)
    elif name != kind:
        raise _unknown(name)
    usual = "aarch64" if kind == "metal" or device in JETSONS else machine()
    level = choose(arch or usual, frozenset())
    return Target(kind, level.isa, level.arch, level.requires, level.mcpu, level.mattr, device)


def _unknown(name: str) -> UnsupportedError:
    known = ["auto", "cpu", *(f"cpu-{level.isa}" for level in LEVELS if level.arch == machine())]
    known += [f"{level.arch}-{level.isa}" for level in LEVELS]
    known += ["cuda-sm_87 (or another compute capability)", "vulkan", "metal"]
    return UnsupportedError(f"unknown target {name!r}", hint=f"Targets: {', '.join(dict.fromkeys(known))}.")


def _target(level: Level) -> Target:
    return Target("cpu", level.isa, level.arch, level.requires, level.mcpu, level.mattr)
