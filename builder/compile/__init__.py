"""Compiles an MLC model directory into a library for one target, and finds libraries compiled before.

Importing this package is cheap: TVM's compiler is imported when something is compiled, and not before.
"""

import fcntl
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.compile import library as _library
from builder.compile.library import Kernels, check_library
from builder.compile.linker import find_linker, link
from builder.compile.mlc import MLCDirectory
from builder.compile.targets import LEVELS, Kind, Target, cpu_features, parse_target
from builder.errors import BuildError, StaleLibraryError, ToolMissingError

__all__ = [
    "Kernels",
    "Kind",
    "check_library",
    "compile_model",
    "find_library",
    "has_compiler",
    "parse_target",
    "runnable",
]

Progress = Callable[[str, float], None]


def compile_model(
    directory: Path,
    cache: Path,
    *,
    target: Target,
    kernels: Kernels,
    progress: Progress = lambda _step, _share: None,
) -> Path:
    """Compile the model in `directory`; return the library's path inside `cache`.

    Returns at once when a valid library is there; replaces a damaged one. Several processes may ask for the
    same library at the same time: one compiles, the others wait for it. A library appears complete or not
    at all.

    Args:
        progress: called with the step's name and the share of all work done, 0 to 1.

    Raises:
        FormatError, UnsupportedError: the directory, family, quantisation or target.
        ToolMissingError: no compiler, or no linker.
        BuildError: the linker failed, or `cache` cannot be written.
    """
    model = MLCDirectory.open(directory)
    try:
        return _compile(model, cache, target, kernels, progress)
    except OSError as error:
        raise BuildError(
            f"cannot write {error.filename or cache}: {error.strerror}",
            hint=f"Make room or another place for compiled libraries; {cache} is where they go.",
        ) from error


def _compile(model: MLCDirectory, cache: Path, target: Target, kernels: Kernels, progress: Progress) -> Path:
    identity = _library.identify(model, target, kernels)
    path = cache / identity.file_name
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(path.name + ".lock")):
        try:
            if path.exists():
                _library.check(path, identity.describe())
                return path
        except StaleLibraryError:
            pass  # replaced below
        if not has_compiler():
            raise ToolMissingError(
                "this Hob was installed without its compiler, and no library came with it",
                hint="Choose a model that came with the system, or install Hob with its compiler.",
            )
        find_linker(target.arch)  # fail before the long part
        scratch = Path(tempfile.mkdtemp(prefix=".compile-", dir=cache))
        try:
            progress("load compiler", 0.0)
            from builder.compile import graph  # imports TVM's compiler: a second, and 150 MB

            objects = graph.build_objects(model, target, kernels, scratch, progress)
            progress("link", 0.95)
            link(objects, scratch / path.name, arch=target.arch)
            _library.write_manifest(scratch / path.name, identity, scratch / "manifest.json")
            # The engine may run as another user than the compiler; who may look in here, the folder says.
            (scratch / path.name).chmod(0o644)
            (scratch / "manifest.json").chmod(0o644)
            # The manifest goes first: without its library it is ignored, a library without it is refused.
            os.replace(scratch / "manifest.json", _library.manifest_of(path))
            os.replace(scratch / path.name, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    progress("done", 1.0)
    return path


def find_library(directory: Path, cache: Path, *, target: Target, kernels: Kernels) -> Path | None:
    """The library compiled for the model in `directory`, or None if there is none in `cache`.

    Raises:
        FormatError, UnsupportedError: the directory.
        StaleLibraryError: the file there is damaged, or its manifest names another model, target or compiler.
    """
    identity = _library.identify(MLCDirectory.open(directory), target, kernels)
    path = cache / identity.file_name
    if not path.exists():
        return None
    _library.check(path, identity.describe())
    return path


def has_compiler() -> bool:
    """Whether TVM's compiler is installed; a system may come with nothing of TVM but its runtime."""
    spec = importlib.util.find_spec("tvm")
    return spec is not None and spec.origin is not None  # without the compiler there is no `tvm/__init__.py`


def runnable(name: str) -> Iterator[Target]:
    """The target that `--target` means, then the lesser levels of its processor that this machine runs too.

    Raises:
        UnsupportedError: as `parse_target`.
    """
    best = parse_target(name)
    yield best
    features = cpu_features()
    for level in LEVELS:
        target = parse_target(f"{level.arch}-{level.isa}")
        lesser = best.kind == "cpu" and target.arch == best.arch and target != best
        if lesser and features.issuperset(level.requires):
            yield target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`. The file stays: removing it would let two holders in."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
