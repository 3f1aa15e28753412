"""The structure holds: imports point one way, and heavy parts stay out of the web process."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first. A module may import from lower layers and from its own.
LAYERS = [
    {"appliance", "appliance.domain", "appliance.errors", "appliance.config", "appliance.upstream.settings"},
    {
        "appliance.store",
        "appliance.hardware",
        "appliance.chat",
        "appliance.engine",
        "appliance.engine.base",
        "appliance.engine.messages",
        "appliance.engine.wire",
        "appliance.engine.scheduler",
        "appliance.engine.sampler",
        "appliance.library.lock",
        "appliance.systemd",
    },
    {
        "appliance.models",
        "appliance.compiler",
        "appliance.shipped",
        "appliance.admin",
        "appliance.update",
        "appliance.setup",
        "appliance.engine.absent",
        "appliance.engine.choice",
        "appliance.upstream",
        "appliance.library",
        "appliance.doctor",
        "appliance.engine.client",
        "appliance.engine.device",
        "appliance.engine.runtime",
        "appliance.engine.weights",
        "appliance.engine.native",
        "appliance.engine.mlc",
        "appliance.engine.probe",
        "appliance.engine.measure",
        "appliance.engine.worker",
        "appliance.security",
        "appliance.discovery",
        "appliance.system",
        "appliance.jobs",
        "appliance.residency",
        "appliance.measuring",
        "appliance.overview",
        "appliance.backup",
        "appliance.ballast",
    },
    {"appliance.local"},
    {"appliance.workshop", "appliance.inference"},
    {"appliance.api", "webui"},
    {"appliance.app"},
    {"appliance.cli"},
]

# What runs the models; only the engine process (and the probe, which is one) may load it.
ENGINE_ONLY = {"appliance.engine.native", "appliance.engine.mlc"}
ENGINE_PROCESS = {"appliance.engine.worker", "appliance.engine.probe"}

# The only part of the builder that the service itself imports; the rest stays behind command-line verbs.
SHARED_WITH_BUILDER = {
    "builder",
    "builder.errors",
    "builder.compile",
    "builder.compile.bfloat16",
    "builder.compile.families",  # its names; importing it loads nothing else
    "builder.compile.mlc",
    "builder.compile.quantise",
    "builder.compile.template",
}


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    """Every module of a package by dotted name, parsed."""
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text(), filename=str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported in a tree; `from a import b` gives a.b if that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if exists(name) else node.module


def layer(module: str) -> int | None:
    """The layer a dotted name belongs to, by its longest known prefix; None for names outside."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if prefix == "appliance" and len(parts) > 1:
            continue  # appliance.<unknown> must be placed by name
        for number, names in enumerate(LAYERS):
            if prefix in names:
                return number
    return None


def exists(module: str) -> bool:
    """Whether a dotted name is a module of ours (and not a name inside one)."""
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pytest.mark.parametrize("package", ["appliance", "webui"])
def test_imports_point_one_way(package: str) -> None:
    """No module imports from a higher layer; every module has a layer."""
    wrong = []
    for name, tree in modules(package):
        own = layer(name)
        assert own is not None, f"{name} has no layer: place it in LAYERS"
        wrong += [
            f"{name} imports {imported}"
            for imported in imports(tree)
            if exists(imported) and (other := layer(imported)) is not None and other > own
        ]
    assert wrong == []


def test_builder_never_imports_the_service() -> None:
    """The builder makes what the device runs; it knows nothing of the service."""
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules("builder")
        for imported in imports(tree)
        if imported.split(".")[0] in {"appliance", "webui"}
    ]
    assert wrong == []


def test_only_the_engine_process_loads_the_native_engine() -> None:
    """`native` is imported by the engine process alone."""
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules("appliance")
        if name not in ENGINE_PROCESS | ENGINE_ONLY
        for imported in imports(tree)
        if imported in ENGINE_ONLY
    ]
    assert wrong == []


def test_the_service_shares_only_the_directory_format_with_the_builder() -> None:
    """Outside the command line, the service imports only the MLC model format from the builder."""
    wrong = [
        f"{name} imports {imported}"
        for package in ("appliance", "webui")
        for name, tree in modules(package)
        if not name.startswith("appliance.cli")
        for imported in imports(tree)
        if imported.startswith("builder") and exists(imported) and imported not in SHARED_WITH_BUILDER
    ]
    assert wrong == []


def test_no_import_cycles() -> None:
    """The module graph of all packages has no cycle among imports made when a module loads."""
    graph: dict[str, set[str]] = {}
    for package in ("appliance", "webui", "builder"):
        for name, tree in modules(package):
            top = ast.Module(
                body=[n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], type_ignores=[]
            )
            graph[name] = {i for i in imports(top) if exists(i) and i != name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "appliance.app",
            {"tvm", "tvm_ffi", "torch", "transformers", "httpx2", "zeroconf", "huggingface_hub"},
        ),
        ("appliance.cli", {"starlette", "pydantic", "numpy", "tvm", "tvm_ffi", "sqlite_utils"}),
        ("appliance.engine.worker", {"tvm", "torch", "starlette", "pydantic", "tokenizers", "sqlite_utils"}),
        ("builder.compile.mlc", {"tvm", "tvm_ffi", "torch", "safetensors"}),
    ],
)
def test_heavy_parts_stay_out(module: str, absent: set[str]) -> None:
    """Importing a process's entry module does not load what that process must not carry."""
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert absent.isdisjoint(loaded)
