"""What the system ships in /usr/share/hob: models, and the libraries compiled for the device's processors.

They are compiled here, for processors that this machine need not have, so that the device answers in its
first minute and without a compiler.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError
from builder.image.toolbox import Toolbox

GUIDE = Path(__file__).parents[1] / "guide" / "model"
"""The built-in model. It lies in Hob's own package, so that only its libraries are shipped here."""

REPEATABLE = ("setarch", "--addr-no-randomize", "prlimit", "--stack=8388608")
"""What the compiler runs under, so that its libraries are the same each time: TVM's passes go through some of
their tables in the order of addresses. The kernel must not choose them anew for each process, and nothing
that takes room in memory may differ: neither Python nor variables nor lengths of paths, nor which thread is
faster, nor whether a module's bytecode was there. So it runs in the toolbox, and everything has its place."""

PACKAGES, SOURCES, MODEL, CACHE = "/mnt/packages", "/mnt/hob", "/mnt/model", "/mnt/cache"
"""The places of Python's packages, Hob's sources, the model, and where libraries go."""

QUIET = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": f"{PACKAGES}:{SOURCES}",
    "PYTHONPYCACHEPREFIX": "/nowhere",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TVM_NUM_THREADS": "1",
}
"""The compiler's variables besides the toolbox's own."""

Tell = Callable[[str, float], None]
"""Called with what is done now and the share of all work done, 0 to 1."""


@dataclass(frozen=True)
class Compiler:
    """What compiles: the toolbox's Python with packages, TVM's compiler among them, and Hob's sources."""

    toolbox: Toolbox
    packages: Path
    sources: Path


def install(
    out: Path,
    *,
    compiler: Compiler,
    models: Mapping[str, Path],
    targets: Sequence[str],
    tell: Tell = lambda _text, _share: None,
) -> None:
    """Fill the empty folder `out`, which is /usr/share/hob on the device.

    Args:
        compiler: see there.
        models: MLC directories by the name they get on the device, besides the guide.
        targets: what to compile all models for, as `hob model compile --target` takes it:
            "x86_64-avx2", "aarch64-neondot", "cuda-sm_87".

    Raises:
        FormatError, UnsupportedError: a model or target.
        BuildError: a model does not compile; the message says why.
    """
    (out / "models").mkdir(parents=True)
    (out / "libraries").mkdir()
    work = [(name, directory, target) for name, directory in models.items() for target in targets]
    work = [*(("hob-guide", GUIDE, target) for target in targets), *work]
    for number, (name, directory, target) in enumerate(work):

        def told(step: str, share: float, *, at: int = number, what: str = f"{name} for {target}") -> None:
            tell(f"{what}: {step}", (at + share) / len(work))

        compile_library(compiler, directory, out / "libraries", target, told)
    for name, directory in models.items():
        copy_model(directory, out / "models" / name)
    for lock in (out / "libraries").glob("*.lock"):
        lock.unlink()


def copy_model(directory: Path, target: Path) -> None:
    """Copy what belongs to a model, after comparing its weights with their checksums.

    Raises:
        FormatError: it is damaged.
    """
    MLCDirectory.open(directory).verify()
    target.mkdir(parents=True)
    for path in sorted(directory.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)


def compile_library(compiler: Compiler, directory: Path, cache: Path, target: str, tell: Tell) -> None:
    """Compile a model into `cache` in a process of its own: TVM's compiler takes 300 MB and keeps them.

    Raises:
        BuildError: it does not compile.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _start(compiler, directory, cache, target) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        report: dict[str, object] = {}
        for line in process.stdout:
            report = json.loads(line)
            if "step" in report:
                tell(str(report["step"]), float(str(report["fraction"])))
        complaints = process.stderr.read().strip()
    if "error" in report:
        raise BuildError(f"{directory.name} for {target}: {report['error']}", hint=str(report["hint"]))
    if process.returncode != 0 or "library" not in report:
        last = complaints.splitlines()[-1] if complaints else f"exit status {process.returncode}"
        raise BuildError(f"the compiler failed on {directory} for {target}: {last}")


def _start(compiler: Compiler, directory: Path, cache: Path, target: str) -> subprocess.Popen[str]:
    program = ("-m", "builder.compile")
    if "cuda" in target:  # NVIDIA's compiler is this machine's, and so is the C++ compiler that it calls
        return subprocess.Popen(
            [*REPEATABLE, sys.executable, *program, directory, cache, "--target", target],
            env=QUIET | {"PATH": os.defpath, "PYTHONPATH": str(compiler.sources)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    return compiler.toolbox.start(
        [*REPEATABLE, "python3", *program, MODEL, CACHE, "--target", target],
        bound={compiler.packages: PACKAGES, compiler.sources: SOURCES, directory: MODEL},
        lent={cache: CACHE},
        env=QUIET,
    )
