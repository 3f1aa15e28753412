"""Links the compiler's object files into a shared library, with whatever linker the machine has.

No C compiler and no development files are needed: a model library refers only to symbols that are there when
it is loaded, those of TVM's runtime and of the C library that Python itself runs on.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from builder.compile.targets import machine
from builder.errors import BuildError, ToolMissingError


def linkers(platform: str = sys.platform, arch: str = "") -> Iterator[list[str]]:
    """The linkers of this machine, best first: commands that take `-shared -o LIBRARY OBJECTS`.

    Args:
        arch: of the objects, as `Target.arch` spells it; "" for this machine's. LLVM's linker takes any;
            others are made for one, and go by its name where they are cross linkers.
    """
    if arch not in ("", machine()):
        commands = [["ld.lld"], [f"{arch}-linux-gnu-ld"], [f"{arch}-linux-gnu-gcc", "-nostdlib"]]
    elif platform == "darwin":
        commands = [["clang", "-undefined", "dynamic_lookup"]]
    else:
        commands = [["ld.lld"], ["ld"], *([name, "-nostdlib"] for name in ("gcc", "clang", "cc"))]
    for name, *flags in commands:
        if path := shutil.which(name):
            yield [path, *flags]
    # A wheel of the Zig compiler carries LLVM's linker.
    if platform != "darwin" and importlib.util.find_spec("ziglang") is not None:
        yield [sys.executable, "-m", "ziglang", "ld.lld"]


def find_linker(arch: str = "") -> list[str]:
    """The best linker of this machine for objects of an architecture, "" for this machine's.

    Raises:
        ToolMissingError: there is none; the hint says what to install.
    """
    for command in linkers(arch=arch):
        return command
    if arch not in ("", machine()):
        raise ToolMissingError(
            f"no linker for {arch} found: neither ld.lld, {arch}-linux-gnu-ld nor the Python package ziglang",
            hint=f"Run `pip install ziglang`, or install lld or binutils-{arch.replace('_', '-')}-linux-gnu.",
        )
    if sys.platform == "darwin":
        raise ToolMissingError("no linker found: there is no clang", hint="Run `xcode-select --install`.")
    raise ToolMissingError(
        "no linker found: neither ld.lld, ld, a C compiler nor the Python package ziglang",
        hint="Run `pip install ziglang`, or install your system's binutils or lld package.",
    )


def link(objects: Sequence[Path], library: Path, linker: Sequence[str] | None = None, arch: str = "") -> None:
    """Link `objects` into the shared library `library`.

    Args:
        linker: command to use; by default the one `find_linker` chooses.
        arch: of the objects; "" for this machine's.

    Raises:
        ToolMissingError: no linker.
        BuildError: the linker failed; the message has its last line.
    """
    command = [*(linker or find_linker(arch)), "-shared", "-o", str(library), *map(str, objects)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BuildError(f"linking {library.name} with {command[0]} failed: {lines[-1]}")
