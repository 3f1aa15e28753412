"""What an image adds to Debian: Hob in /opt/hob, its units and users, models, settings, as one tree.

The same tree, with another few files, is the Debian package. Three layers make it, each kept by what it is
made from: the packages that Hob needs, Hob itself, and the models with their libraries. A change of Hob's own
code makes only the second anew.

    /opt/hob/                      a virtual environment of Debian's Python
    /usr/bin/hob                   -> /opt/hob/bin/hob
    /usr/lib/systemd/system/       units; users and folders in sysusers.d and tmpfiles.d
    /usr/share/hob/                models, compiled libraries
    /etc/hob/                      hob.toml, the settings; image.toml, what this image is
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from builder.compile.library import compiler_digest, tvm_version
from builder.errors import FormatError
from builder.image import application, bytecode, shipped, wheels
from builder.image.cache import Cache, digest, file_digest, tree_digest
from builder.image.toolbox import Toolbox, host_architecture

Tell = Callable[[str, float], None]
"""Called with what is done now and the share of all work done, 0 to 1."""

UNIT_KINDS = ("*.service", "*.socket", "*.timer", "*.path", "*.mount", "*.target")

CODE = {
    file: file_digest(Path(file))
    for file in (__file__, application.__file__, bytecode.__file__, shipped.__file__, wheels.__file__)
}
"""Digests of the modules that do the work, as they were when they were imported: that is the code that runs,
whatever becomes of the file meanwhile."""

GPU = "gpu.conf"
"""Of systemd/: what the engine's unit may reach besides, where a GPU computes."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything the tree depends on.

    Attributes:
        arch: Debian's name of the architecture: "amd64" or "arm64".
        version: what Hob calls itself.
        epoch: the time of every file, in seconds since 1970.
        targets: what the models are compiled for: "x86_64-avx2", "aarch64-neondot", "cuda-sm_87".
        models: MLC directories by name, besides the built-in guide.
        compiler: whether the device can compile models itself: 250 MB more.
        gpu: whether the engine may use the device's GPUs.
        settings: text of /etc/hob/hob.toml; "" for none.
        image: text of /etc/hob/image.toml; "" for none.
        system: folders whose files are copied onto the tree, later ones over earlier ones.
        checkout: Hob's sources.
    """

    arch: str
    version: str
    epoch: int
    targets: Sequence[str]
    models: Mapping[str, Path] = field(default_factory=dict)
    compiler: bool = False
    gpu: bool = False
    settings: str = ""
    image: str = ""
    system: Sequence[Path] = ()
    checkout: Path = field(default_factory=application.checkout_of)

    @property
    def lock(self) -> Path:
        """The lock file of the Python packages."""
        return self.checkout / "requirements/service.txt"

    @property
    def units(self) -> Path:
        """The folder of units."""
        return self.checkout / "systemd"


def build(
    contents: Contents, cache: Cache, toolbox: Toolbox, tell: Tell = lambda _text, _share: None
) -> Path:
    """Return the tree, making what of it is not in the cache. Nothing in it may be changed.

    Besides the tree, the folder has the `.inputs.json` of the cache.

    Raises:
        FormatError, UnsupportedError: the lock file, a model, or a target.
        ToolMissingError, BuildError, CommandError: a part cannot be made; the message says which.
    """
    tell("Python packages", 0.0)
    packages = python_packages(contents, cache, toolbox)
    tell("Hob", 0.3)
    hob = cache.get(
        "application",
        application_inputs(contents, toolbox),
        lambda out: application.install(
            out,
            checkout=contents.checkout,
            version=contents.version,
            epoch=contents.epoch,
            toolbox=toolbox,
        ),
    )
    models = cache.get(
        "models",
        models_inputs(contents, toolbox),
        lambda out: shipped.install(
            out,
            compiler=compiler(contents, cache, toolbox),
            models=contents.models,
            targets=contents.targets,
            tell=lambda text, share: tell(text, 0.4 + 0.5 * share),
        ),
    )
    tell("files of the system", 0.9)
    made = cache.get(
        "overlay",
        inputs(contents, toolbox),
        lambda out: assemble(out, contents, packages=packages, hob=hob, models=models),
    )
    tell("done", 1.0)
    return made


def python_packages(contents: Contents, cache: Cache, toolbox: Toolbox) -> Path:
    """The folder of Python packages."""
    return cache.get(
        "wheels",
        packages_inputs(contents, toolbox),
        lambda out: wheels.install(
            out,
            arch=contents.arch,
            lock=contents.lock,
            project=contents.checkout / "pyproject.toml",
            compiler=contents.compiler,
            toolbox=toolbox,
        ),
    )


def compiler(contents: Contents, cache: Cache, toolbox: Toolbox) -> shipped.Compiler:
    """What compiles the models: this machine's kind of packages, whatever the device's."""
    here = replace(contents, arch=host_architecture(), compiler=True)
    return shipped.Compiler(toolbox, python_packages(here, cache, toolbox), contents.checkout)


def packages_inputs(contents: Contents, toolbox: Toolbox) -> dict[str, object]:
    """What the layer of Python packages depends on."""
    return {
        "arch": contents.arch,
        "lock": file_digest(contents.lock),
        "dependencies": wheels.dependencies(contents.checkout / "pyproject.toml"),
        "compiler": contents.compiler,
        "code": _code(wheels.__file__, bytecode.__file__),
        "python": _python(toolbox),
    }


def application_inputs(contents: Contents, toolbox: Toolbox) -> dict[str, object]:
    """What the layer of Hob itself depends on: the same for every architecture."""
    return {
        "sources": digest(
            [
                [path.relative_to(contents.checkout).as_posix(), file_digest(path)]
                for path in application.sources(contents.checkout)
            ]
        ),
        "version": contents.version,
        "epoch": contents.epoch,
        "code": _code(application.__file__, bytecode.__file__),
        "python": _python(toolbox),
    }


def models_inputs(contents: Contents, toolbox: Toolbox) -> dict[str, object]:
    """What the layer of models depends on."""
    return {
        "models": {name: tree_digest(path) for name, path in contents.models.items()},
        "guide": tree_digest(shipped.GUIDE),
        "targets": list(contents.targets),
        "compiler": compiler_digest(),
        "tvm": tvm_version(),
        "code": _code(shipped.__file__),
        "packages": file_digest(contents.lock),
        "python": _python(toolbox),
    }


def inputs(contents: Contents, toolbox: Toolbox) -> dict[str, object]:
    """What the tree depends on."""
    return {
        "packages": packages_inputs(contents, toolbox),
        "application": application_inputs(contents, toolbox),
        "models": models_inputs(contents, toolbox),
        "units": tree_digest(contents.units),
        "gpu": contents.gpu,
        "settings": contents.settings,
        "image": contents.image,
        "system": [tree_digest(folder) for folder in contents.system],
        "epoch": contents.epoch,
        "code": _code(__file__),
    }


def assemble(out: Path, contents: Contents, *, packages: Path, hob: Path, models: Path) -> None:
    """Fill the folder `out` with the tree: the three layers, the units, the settings.

    Raises:
        FormatError: two layers bring the same file.
    """
    copy_tree(hob, out / "opt/hob")
    copy_tree(packages, out / f"opt/hob/lib/python{wheels.PYTHON}/site-packages")
    copy_tree(models, out / "usr/share/hob")
    program = out / "usr/bin/hob"
    program.parent.mkdir(parents=True)
    program.symlink_to("/opt/hob/bin/hob")
    copy_units(contents.units, out, gpu=contents.gpu)
    for name, text in (("hob.toml", contents.settings), ("image.toml", contents.image)):
        if text:
            file = out / "etc/hob" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    for folder in contents.system:
        copy_tree(folder, out, replace=True)
    settle(out, contents.epoch)


def copy_units(units: Path, out: Path, *, gpu: bool) -> None:
    """Put the units where systemd looks for those of a package, with the users and folders they need."""
    system = out / "usr/lib/systemd/system"
    system.mkdir(parents=True)
    for kind in UNIT_KINDS:
        for unit in sorted(units.glob(kind)):
            shutil.copyfile(unit, system / unit.name)
    for kind in ("sysusers", "tmpfiles"):
        file = out / f"usr/lib/{kind}.d/hob.conf"
        file.parent.mkdir(parents=True)
        shutil.copyfile(units / f"hob.{kind}", file)
    if gpu:
        for name in ("hob.service", "hob-engine.service"):
            (system / f"{name}.d").mkdir()
            shutil.copyfile(units / GPU, system / f"{name}.d" / GPU)


def copy_tree(source: Path, target: Path, *, replace: bool = False) -> None:
    """Copy what lies in `source` into `target`, symbolic links as such.

    Raises:
        FormatError: a file is there already, and not `replace`.
    """
    for folder, names, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        if replace:  # sources of files, where Python may have left its own
            names[:] = [name for name in names if name != "__pycache__"]
        for name in [*files, *(name for name in names if Path(folder, name).is_symlink())]:
            if name == ".inputs.json" and Path(folder) == source:  # the cache's own
                continue
            copy = here / name
            if copy.is_symlink() or copy.exists():
                if not replace:
                    raise FormatError(f"{copy.relative_to(target)} comes from two layers")
                copy.unlink()
            shutil.copy2(Path(folder, name), copy, follow_symlinks=False)


def settle(tree: Path, epoch: int) -> None:
    """Give everything in a tree the modes and the time that do not depend on who built it where."""
    for path in [*tree.rglob("*"), tree]:
        if not path.is_symlink():
            # Shared libraries are loaded, not run, though some wheels mark them so.
            runnable = path.is_dir() or (path.stat().st_mode & 0o111 and ".so" not in path.suffixes)
            path.chmod(0o755 if runnable else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def sizes(tree: Path) -> dict[str, int]:
    """Bytes of each part of a tree, the largest first: packages of Python, models, libraries, the rest."""
    site = f"opt/hob/lib/python{wheels.PYTHON}/site-packages/"
    found: dict[str, int] = {}
    for path in tree.rglob("*"):
        if path.is_dir() or path.is_symlink():
            continue
        name = path.relative_to(tree).as_posix()
        if name.startswith(site):
            part = name.removeprefix(site).partition("/")[0]
            part = "Hob" if part in application.PACKAGES else f"Python: {part.removesuffix('.libs')}"
            if path.name.startswith("libtvm_compiler"):
                part = "compiler"
        elif name.startswith("usr/share/hob/"):
            part = name.split("/")[3]
        else:
            part = "system"
        found[part] = found.get(part, 0) + path.stat().st_size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _code(*files: str) -> str:
    """Digest of the modules that make a layer."""
    return digest([CODE[file] for file in (*files, wheels.__file__)])


def _python(toolbox: Toolbox) -> str:
    """The version of the toolbox's Python, which decides the bytecode."""
    return toolbox.run(["python3", "-c", "import sys; print(sys.version)"]).strip()
