"""What the system ships in /usr/share/hob: models, and the libraries compiled for the device's processors.

They are compiled here, for processors that this machine need not have, so that the device answers in its
first minute and without a compiler.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError, ToolMissingError

GUIDE = Path(__file__).parents[1] / "guide" / "model"
"""The built-in model. It lies in Hob's own package, so that only its libraries are shipped here."""

REPEATABLE = ("setarch", "--addr-no-randomize")
"""What the compiler runs under, so that its libraries are the same each time: TVM's passes go through some of
their tables in the order of addresses. The kernel must not choose them anew for each process, and nothing
that takes room in memory may differ: neither variables nor the lengths of paths, nor which thread is faster,
nor whether a module's bytecode was there."""

QUIET = {
    "PATH": os.defpath,
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "PYTHONPYCACHEPREFIX": "/nowhere",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TVM_NUM_THREADS": "1",
}
"""All variables that the compiler gets."""

Tell = Callable[[str, float], None]
"""Called with what is done now and the share of all work done, 0 to 1."""


def install(
    out: Path,
    *,
    models: Mapping[str, Path],
    targets: Sequence[str],
    guide: Path = GUIDE,
    tell: Tell = lambda _text, _share: None,
) -> None:
    """Fill the empty folder `out`, which is /usr/share/hob on the device.

    Args:
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
    work = [*(("hob-guide", guide, target) for target in targets), *work]
    for number, (name, directory, target) in enumerate(work):

        def told(step: str, share: float, *, at: int = number, what: str = f"{name} for {target}") -> None:
            tell(f"{what}: {step}", (at + share) / len(work))

        compile_library(directory, out / "libraries", target, told)
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


def compile_library(directory: Path, cache: Path, target: str, tell: Tell) -> None:
    """Compile a model into `cache` in a process of its own: TVM's compiler takes 300 MB and keeps them.

    Raises:
        BuildError: it does not compile.
        ToolMissingError: this machine has no setarch.
    """
    if shutil.which(REPEATABLE[0]) is None:
        raise ToolMissingError("setarch is not installed", hint="Install your system's util-linux package.")
    cache.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(
            [
                *(*REPEATABLE, sys.executable, "-m", "builder.compile"),
                *(*_linked(scratch, directory, cache), "--target", target),
            ],
            cwd=scratch,
            env=QUIET,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
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


def _linked(scratch: str, directory: Path, cache: Path) -> list[str]:
    """Two short names for two folders, in a folder for them."""
    names = ["model", "cache"]
    for name, folder in zip(names, (directory, cache), strict=True):
        Path(scratch, name).symlink_to(folder.absolute())
    return names
