"""Compiled model libraries on disk: what identifies one, its manifest, and when it is refused.

A library is native code. It is loaded only if the manifest beside it names this very model structure, target
and compiler, and its SHA-256 is the file's.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any, Literal

from builder.compile.mlc import MLCDirectory
from builder.compile.targets import Target, cpu_features, machine
from builder.errors import StaleLibraryError

Kernels = Literal["fast", "exact"]

MANIFEST_FORMAT = 1
SUFFIX = ".so"
HINT = "Delete it, or compile the model again: `hob model compile`."
# What the generated code depends on; the rest of the package may change without a new library.
SOURCES = (
    "families",
    "kernels",
    "cpu.py",
    "functions.py",
    "gpu",
    "graph.py",
    "kv_cache.py",
    "library.py",
    "linker.py",
    "matrices.py",
    "operators.py",
    "packing.py",
    "quantise.py",
    "targets.py",
)


@dataclass(frozen=True)
class Identity:
    """Everything the code of a library depends on.

    Attributes:
        model_type, quantization: MLC's names.
        structure: `model_config`: shapes, position encoding, context.
        target: `Target.key`, and LLVM's names of it.
        requires: CPU features the code uses.
        kernels: "fast" (int8 activations) or "exact" (float activations).
        tvm: version of the TVM package.
        compiler: digest of this package's own code generation.
    """

    model_type: str
    quantization: str
    structure: Mapping[str, Any]
    target: str
    requires: tuple[str, ...]
    kernels: Kernels
    tvm: str
    compiler: str

    def describe(self) -> dict[str, Any]:
        """For JSON; the manifest without the file's digest."""
        return {
            "format": MANIFEST_FORMAT,
            "model_type": self.model_type,
            "quantization": self.quantization,
            "structure": dict(self.structure),
            "target": self.target,
            "requires": list(self.requires),
            "kernels": self.kernels,
            "tvm": self.tvm,
            "compiler": self.compiler,
        }

    @property
    def file_name(self) -> str:
        """Readable and unique: "llama-q4f16_1-x86_64-avx2-fast-0123456789ab.so"."""
        text = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.model_type}-{self.quantization}-{self.target}-{self.kernels}-{digest}{SUFFIX}"


def identify(model: MLCDirectory, target: Target, kernels: Kernels) -> Identity:
    """The identity of the library that `model` needs on `target`."""
    return Identity(
        model_type=model.model_type,
        quantization=model.quantization,
        structure=model.config["model_config"],
        target=target.key,
        requires=target.requires,
        kernels=kernels if target.kind == "cpu" else "fast",  # GPUs have one kind
        tvm=tvm_version(),
        compiler=compiler_digest(),
    )


@cache
def tvm_version() -> str:
    """Version of the installed TVM; with its name where it is not the one from PyPI."""
    try:
        return version("apache-tvm")
    except PackageNotFoundError:
        names = packages_distributions().get("tvm", ())  # MLC-LLM's TVM is called otherwise
        return " ".join(f"{name} {version(name)}" for name in sorted(set(names))) or "none"


@cache
def compiler_digest() -> str:
    """Digest of the sources that generate code."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for source in SOURCES:
        path = root / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def manifest_of(library: Path) -> Path:
    """Where the manifest of `library` lies."""
    return library.with_name(library.name + ".json")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(library: Path, identity: Identity, manifest: Path) -> None:
    """Write the manifest of the finished file `library` to `manifest`."""
    record = {**identity.describe(), "sha256": file_digest(library)}
    manifest.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def check(library: Path, expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the manifest of `library` after checking it, without loading the library.

    Args:
        expected: fields the manifest must agree with, as `Identity.describe` gives them.

    Raises:
        StaleLibraryError: no manifest, another SHA-256, or a field differs; names file and field.
    """
    try:
        manifest = json.loads(manifest_of(library).read_text(encoding="utf-8"))
    except OSError as error:
        raise StaleLibraryError(f"{library.name}: its manifest cannot be read: {error}", hint=HINT) from error
    except ValueError as error:
        raise StaleLibraryError(f"{library.name}: its manifest is not JSON: {error}", hint=HINT) from error
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise StaleLibraryError(f"{library.name}: its manifest has an unknown format", hint=HINT)
    for field, value in (expected or {}).items():
        if manifest.get(field) != value:
            raise StaleLibraryError(
                f"{library.name}: {field} is {_brief(manifest.get(field))}, wanted {_brief(value)}", hint=HINT
            )
    if file_digest(library) != manifest.get("sha256"):
        raise StaleLibraryError(f"{library.name}: the file is not the one its manifest describes", hint=HINT)
    return manifest


def check_library(library: Path, model: MLCDirectory) -> dict[str, Any]:
    """Make sure that `library` may be loaded on this machine to run `model`; return its manifest.

    Raises:
        StaleLibraryError: as `check`; or it was compiled for another model, for another kind of processor, or
            for features this CPU lacks.
    """
    expected = {
        "model_type": model.model_type,
        "quantization": model.quantization,
        "structure": model.config["model_config"],
    }
    manifest = check(library, expected)
    if (arch := str(manifest["target"]).partition("-")[0]) != machine():
        raise StaleLibraryError(
            f"{library.name} is for {arch} processors, this is {machine()}",
            hint="Compile the model on this machine: `hob model compile`.",
        )
    if lacking := sorted(set(manifest["requires"]) - cpu_features()):
        raise StaleLibraryError(
            f"{library.name} needs CPU features this machine lacks: {', '.join(lacking)}",
            hint="Compile the model on this machine: `hob model compile`.",
        )
    return manifest


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
