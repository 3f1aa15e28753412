"""The Python packages that Hob needs, for the device's Python and processor, as a tree of `site-packages`.

They come from the lock file: exact versions, each file's SHA-256. Nothing of them runs here, so the device's
processor may be another one. Two runs on the same lock give the same bytes.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from builder.errors import BuildError, FormatError, ToolMissingError
from builder.image.bytecode import precompile
from builder.image.toolbox import Toolbox

PYTHON = "3.13"
"""The Python of Debian 13."""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's names of the architectures, and those of wheels and of the kernel."""

GLIBC = 41
"""Debian 13 has glibc 2.41; wheels for any version from 2.17 on run there."""

NEEDLESS = (
    "**/*.pyi",  # for type checkers
    "**/*.pyx",  # and what else was compiled long ago
    "**/*.pxd",
    "**/*.c",
    "**/*.cc",
    "**/*.cpp",
    "**/*.h",
    "**/*.hpp",
    "**/*.a",
    "**/*.cmake",
    "numpy/**/tests",
    "tvm_ffi/include",
    "tvm/include",
    "tvm/3rdparty",
    "tvm/lib64",
    "tvm/web",
    "**/.gitignore",
)
"""Globs of what the packages carry and no running Hob reads; a seventh of their size."""

UNUSED = frozenset({"pip"})
"""Required for what Hob never does: sqlite-utils installs its plugins with pip."""

RUNTIME = "libtvm_runtime"
"""How the files of TVM begin that run models; all others compile them."""


def install(out: Path, *, arch: str, lock: Path, project: Path, compiler: bool, toolbox: Toolbox) -> None:
    """Fill the empty folder `out` with the locked packages that `project` needs, and their bytecode.

    pip downloads what its cache lacks, from wherever it is configured to.

    Args:
        arch: Debian's name: "amd64" or "arm64".
        lock: requirements with hashes, for all platforms; those that do not apply are left out.
        project: the `pyproject.toml` whose dependencies count. What else is locked (the tools that build
            Hob's own wheel) is left out too.
        compiler: whether TVM's compiler comes along: 250 MB, without which no model can be compiled.
        toolbox: has the device's Python, for the bytecode.

    Raises:
        FormatError: the lock file cannot be read or lacks a dependency.
        ToolMissingError: this Python has no pip.
        BuildError: pip failed; the message has its last line.
    """
    environment = marker_environment(arch)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "requirements.txt")
        wanted.write_text("\n".join(applicable(lock, environment)) + "\n", encoding="utf-8")
        _pip(out, arch, wanted)
    # What pip installs to run by hand names the Python of this machine in its first line.
    shutil.rmtree(out / "bin", ignore_errors=True)
    _prune(out, dependencies(project), environment)
    for pattern in NEEDLESS:
        for path in sorted(out.glob(pattern)):
            _remove(path)
    if not compiler:
        _drop_compiler(out / "tvm")
    # Lists files that are no longer there; and where something was to be run by hand, digests that differ
    # from one building machine to the next.
    for path in sorted(out.glob("*.dist-info/RECORD")):
        path.unlink()
    precompile(out, f"/opt/hob/lib/python{PYTHON}/site-packages", toolbox)


def marker_environment(arch: str) -> dict[str, str]:
    """What environment markers (PEP 508) are compared with on the device."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{PYTHON}.0",
        "os_name": "posix",
        "platform_machine": MACHINES[arch],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{PYTHON}.0",
        "python_version": PYTHON,
        "sys_platform": "linux",
    }


def applicable(lock: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The requirements of a lock file that apply there, without their markers, each with all its hashes.

    pip itself would compare the markers with the machine it runs on.

    Raises:
        FormatError: a line is not `name==version`, a marker perhaps, and hashes.
    """
    try:
        text = lock.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"{lock} cannot be read: {error.strerror}") from error
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        locked, *hashes = re.split(r"\s--hash=", line)
        try:
            requirement = Requirement(locked.strip())
        except ValueError as error:
            raise FormatError(f"{lock}: {locked.strip()!r} is not a requirement: {error}") from error
        if not hashes or not re.fullmatch(r"==[^,*]+", str(requirement.specifier)):
            raise FormatError(
                f"{lock}: {requirement.name} has no exact version with hashes",
                hint="requirements/lock.sh writes the lock files.",
            )
        if requirement.marker is None or requirement.marker.evaluate(dict(environment)):
            digests = " ".join(f"--hash={digest.strip()}" for digest in hashes)
            yield f"{requirement.name}{requirement.specifier} {digests}"


def dependencies(project: Path) -> list[str]:
    """The dependencies that a `pyproject.toml` lists."""
    return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])


def _pip(out: Path, arch: str, requirements: Path) -> None:
    """Have pip unpack the wheels for the device into `out`."""
    platforms = [f"manylinux_2_{minor}_{MACHINES[arch]}" for minor in range(GLIBC, 16, -1)]
    platforms += [f"manylinux2014_{MACHINES[arch]}", f"linux_{MACHINES[arch]}"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-compile", "--require-hashes", "--only-binary=:all:"),
            *("--python-version", PYTHON, "--implementation", "cp"),
            *(f"--platform={platform}" for platform in platforms),
            *("--target", str(out), "--requirement", str(requirements)),
        ],
        capture_output=True,
        text=True,
        # pip gives some files the time of the clock, others that of their archive; the image gives all one.
        env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
        check=False,
    )
    if "No module named pip" in done.stderr:
        raise ToolMissingError(f"{sys.executable} has no pip", hint="Run `python -m ensurepip`.")
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BuildError(
            f"pip cannot install the packages for {arch}: {lines[-1] if lines else done.stderr[-300:]}",
            hint="It needs the package index, or a cache that has them from a build before.",
        )


def _prune(site: Path, roots: Iterable[str], environment: Mapping[str, str]) -> None:
    """Remove the packages that none of the requirements `roots` leads to."""
    found = {canonicalize_name(d.name): d for d in map(PathDistribution, sorted(site.glob("*.dist-info")))}
    needed: dict[str, set[str]] = {}
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in found:
            raise FormatError(f"the lock file lacks {requirement.name}", hint="Run requirements/lock.sh.")
        extras = {"", *requirement.extras}
        if name in needed and extras <= needed[name]:
            continue
        needed[name] = needed.get(name, set()) | extras
        for line in found[name].requires or ():
            required = Requirement(line)
            if required.marker is None or any(
                required.marker.evaluate({**environment, "extra": extra}) for extra in needed[name]
            ):
                waiting.append(required)
    for name, distribution in found.items():
        if name not in needed or name in UNUSED:
            for file in distribution.files or ():
                path = site / file
                if path.is_relative_to(site) and ".." not in file.parts:
                    path.unlink(missing_ok=True)
    _drop_empty(site)


def _drop_compiler(tvm: Path) -> None:
    """Leave of the TVM package what runs compiled models."""
    for path in sorted(tvm.rglob("*"), reverse=True):
        if not path.is_dir() and not path.name.startswith(RUNTIME):
            path.unlink()
    _drop_empty(tvm)


def _drop_empty(folder: Path) -> None:
    """Remove the folders in which nothing is left."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
