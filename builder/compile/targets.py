"""What a library is compiled for: an instruction-set level, not one exact CPU.

One library per level serves every CPU that has it, so a card image can carry libraries for machines that
the builder has never seen. Detection reads the operating system's own feature list and needs no compiler.
"""

import platform
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


@dataclass(frozen=True)
class Target:
    """A compilation target.

    Attributes:
        kind: "cpu"; other kinds of device come later.
        isa: instruction-set level that kernels are chosen by.
        arch: "x86_64", "aarch64", or what the machine calls itself.
        requires: features a CPU must have, as /proc/cpuinfo spells them.
        mcpu, mattr: LLVM's names of the level.
    """

    kind: Literal["cpu"]
    isa: Isa
    arch: str
    requires: tuple[str, ...]
    mcpu: str
    mattr: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Stable readable name, used in file names: "x86_64-avx2"."""
        return f"{self.arch}-{self.isa}"

    def tvm(self, cores: int | None = None) -> Mapping[str, Any]:
        """The target as TVM's dictionary. `cores` is a hint to schedules, not part of the identity."""
        target: dict[str, Any] = {"kind": "llvm", "mcpu": self.mcpu}
        if self.mattr:
            target["mattr"] = list(self.mattr)
        if self.arch != machine():
            target["mtriple"] = f"{self.arch}-unknown-linux-gnu"
        if cores is not None:
            target["num-cores"] = cores
        return target


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
    """Read a `--target` value: "auto", "cpu", "cpu-<isa>" for this architecture, or a key such as
    "aarch64-generic".

    Raises:
        UnsupportedError: no such target; the hint lists those there are.
    """
    if name in ("auto", "cpu"):
        return detect_target()
    arch, _, isa = name.partition("-")
    wanted = (machine() if arch == "cpu" else arch, isa)
    for level in LEVELS:
        if (level.arch, level.isa) == wanted:
            return _target(level)
    if wanted == (machine(), "generic"):
        return choose(machine(), frozenset())
    known = ["auto", "cpu", *(f"cpu-{level.isa}" for level in LEVELS if level.arch == machine())]
    known += [f"{level.arch}-{level.isa}" for level in LEVELS]
    raise UnsupportedError(f"unknown target {name!r}", hint=f"Targets: {', '.join(dict.fromkeys(known))}.")


def _target(level: Level) -> Target:
    return Target("cpu", level.isa, level.arch, level.requires, level.mcpu, level.mattr)
