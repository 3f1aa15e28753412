"""Links the compiler's object files into a shared library, with whatever linker the machine has.

No C compiler and no C library is needed: model libraries refer only to symbols that TVM's runtime provides when
it loads them.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from builder.errors import BuildError, ToolMissingError

# Linkers that take `-shared -o OUT FILES`, in order of preference.
LINKERS = ("ld.lld", "ld", "gcc", "clang", "cc")


def find_linker() -> list[str]:
    """The command that links on this machine, without its arguments.

    Raises:
        ToolMissingError: there is none; the hint says what to install.
    """
    if sys.platform == "darwin":
        if clang := shutil.which("clang"):
            return [clang, "-undefined", "dynamic_lookup"]
    else:
        for name in LINKERS:
            if path := shutil.which(name):
                return [path, "-nostdlib"] if name in ("gcc", "clang", "cc") else [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-nostdlib", "-Wl,-undefined,dynamic_lookup"][
            : None if sys.platform == "darwin" else -1
        ]
    raise ToolMissingError(
        "no linker found: neither ld.lld nor ld, nor the Python package ziglang",
        hint="Run `pip install ziglang`, or install your system's binutils or lld package.",
    )


def link(objects: Sequence[Path], library: Path, linker: Sequence[str] | None = None) -> None:
    """Link `objects` into the shared library `library`.

    Args:
        linker: command to use; by default the one `find_linker` chooses.

    Raises:
        ToolMissingError: no linker.
        BuildError: the linker failed; the message has its last line.
    """
    command = [*(linker or find_linker()), "-shared", "-o", str(library), *map(str, objects)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BuildError(f"linking {library.name} with {command[0]} failed: {lines[-1]}")
