"""Compiling: libraries appear whole, once, under the name of what they are; anything else is refused."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builder.compile import check_library, compile_model, find_library, library, linker
from builder.compile.families import llama
from builder.compile.families.fields import Fields
from builder.compile.library import Identity, identify, manifest_of
from builder.compile.mlc import CONFIG, MLCDirectory
from builder.compile.targets import detect_target, parse_target
from builder.errors import BuildError, FormatError, StaleLibraryError, ToolMissingError, UnsupportedError
from tests.compiled import golden
from tests.compiled import library as compiled

TARGET = detect_target()
MODEL = golden("q4f16_1")


def command(directory: Path, cache: Path, *options: str) -> list[str]:
    """The compiler's command line."""
    return [sys.executable, "-m", "builder.compile", str(directory), str(cache), *options]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A library folder that holds the golden model's exact library."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    path = compiled(MODEL, "exact")
    for file in (path, manifest_of(path)):
        shutil.copy(file, folder)
    return folder


def only(cache: Path) -> Path:
    """The one library of a folder."""
    (path,) = cache.glob("*.so")
    return path


def test_two_compilers_make_one_library(tmp_path: Path) -> None:
    """Processes that compile the same model at the same time end with the same, whole library; a later call
    returns it as it is. Each tells its progress as JSON lines.
    """
    running = [
        subprocess.Popen(command(MODEL, tmp_path), stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    lines = [[json.loads(line) for line in process.communicate()[0].splitlines()] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    path = only(tmp_path)
    assert [last["library"] for *_, last in lines] == [str(path), str(path)]
    worked, waited = sorted(
        ([line for line in told if "step" in line] for told in lines), key=len, reverse=True
    )
    fractions = [line["fraction"] for line in worked]
    assert fractions[-1] == 1.0
    assert fractions == sorted(fractions)
    assert waited == []
    assert {file.suffix for file in tmp_path.iterdir()} == {".so", ".json", ".lock"}
    before = path.stat()
    assert compile_model(MODEL, tmp_path, target=TARGET, kernels="fast") == path
    assert path.stat() == before
    assert find_library(MODEL, tmp_path, target=TARGET, kernels="fast") == path


def test_nothing_compiled_is_nothing_found(tmp_path: Path, cache: Path) -> None:
    """An empty folder, other kernels, another target, another model: there is no library, and no error."""
    assert find_library(MODEL, tmp_path / "empty", target=TARGET, kernels="exact") is None
    assert find_library(MODEL, cache, target=TARGET, kernels="exact") == only(cache)
    assert find_library(MODEL, cache, target=TARGET, kernels="fast") is None
    assert find_library(MODEL, cache, target=parse_target("aarch64-generic"), kernels="exact") is None
    assert find_library(golden("q4f32_1"), cache, target=TARGET, kernels="exact") is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "other"),
        ("structure", {"hidden_size": 1}),
        ("target", "x86_64-other"),
        ("kernels", "fast"),
        ("tvm", "0.1"),
        ("compiler", "0" * 16),
        ("sha256", "0" * 64),
        ("format", 0),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(cache: Path, field: str, value: Any) -> None:
    """A library that is another's, or a changed file, is refused by name; compiling replaces it."""
    path = only(cache)
    manifest = json.loads(manifest_of(path).read_text())
    manifest_of(path).write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(StaleLibraryError, match=path.name) as caught:
        find_library(MODEL, cache, target=TARGET, kernels="exact")
    assert "compile" in caught.value.hint


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_an_unreadable_manifest_is_refused(cache: Path, damage: str) -> None:
    """Empty, cut off, or not an object."""
    manifest_of(only(cache)).write_text(damage)
    with pytest.raises(StaleLibraryError, match="manifest"):
        find_library(MODEL, cache, target=TARGET, kernels="exact")


def test_a_renamed_library_is_refused(cache: Path) -> None:
    """A library under another one's name stays what its manifest says."""
    fast = cache / identify(MLCDirectory.open(MODEL), TARGET, "fast").file_name
    exact = only(cache)
    manifest_of(exact).rename(manifest_of(fast))
    exact.rename(fast)
    with pytest.raises(StaleLibraryError, match='kernels is "exact", wanted "fast"'):
        find_library(MODEL, cache, target=TARGET, kernels="fast")


def test_a_damaged_library_is_replaced(cache: Path) -> None:
    """Compiling again where a file is damaged makes it whole."""
    path = only(cache)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(StaleLibraryError, match="not the one its manifest describes"):
        check_library(path, MLCDirectory.open(MODEL))
    done = subprocess.run(command(MODEL, cache, "--kernels", "exact"), capture_output=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"library": str(path)}
    check_library(path, MLCDirectory.open(MODEL))


def test_everything_that_changes_the_code_changes_the_name() -> None:
    """Names differ by structure, quantisation, target, kernels, TVM and compiler version."""
    base = identify(MLCDirectory.open(MODEL), TARGET, "exact")
    fields = base.describe() | {"structure": base.structure, "requires": base.requires}
    del fields["format"]
    other = {"kernels": "fast", "structure": {**base.structure, "rms_norm_eps": 1e-6}}
    names = {Identity(**{**fields, field: other.get(field, "other")}).file_name for field in fields}
    assert len(names | {base.file_name}) == len(fields) + 1


def test_the_compiler_digest_covers_what_generates_code() -> None:
    """Every module that the graph is built from is part of the digest."""
    code = "import sys, builder.compile.graph; print(*[m.__file__ for m in list(sys.modules.values()) \
        if m.__name__.startswith('builder.compile.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    root = Path(library.__file__).parent
    used = {Path(file).relative_to(root).parts[0] for file in done.stdout.split()}
    assert used - set(library.SOURCES) == {"mlc.py", "bfloat16.py"}  # the directory format, not code


def test_a_failing_linker_leaves_nothing(tmp_path: Path) -> None:
    """The error names the linker; no half library, manifest or scratch folder stays behind."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ld.lld"
    program.write_text("#!/bin/sh\necho 'ld: out of luck' >&2\nexit 1\n")
    program.chmod(0o755)
    cache = tmp_path / "cache"
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command(MODEL, cache), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert "out of luck" in error
    assert str(program) in error
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The error names the file at fault and where libraries go."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BuildError, match=str(tmp_path / "file")) as caught:
        compile_model(MODEL, tmp_path / "file" / "libraries", target=TARGET, kernels="fast")
    assert "libraries" in caught.value.hint


def test_without_a_linker_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program on PATH and no ziglang wheel: the hint names both ways out."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolMissingError) as caught:
        linker.find_linker()
    assert "ziglang" in caught.value.hint
    assert "binutils" in caught.value.hint


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Object files of the golden model."""
    code = """
import sys
from pathlib import Path
from builder.compile import graph
from builder.compile.mlc import MLCDirectory
from builder.compile.targets import detect_target
model, scratch = MLCDirectory.open(Path(sys.argv[1])), Path(sys.argv[2])
print(*graph.build_objects(model, detect_target(), "exact", scratch, lambda step, fraction: None))
"""
    scratch = tmp_path_factory.mktemp("objects")
    run = [sys.executable, "-c", code, str(MODEL), str(scratch)]
    return [
        Path(name) for name in subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    ]


@pytest.mark.parametrize("name", ["ld.lld", "ld", "gcc", "clang", "cc", "ziglang"])
def test_every_linker_makes_a_library_that_loads(
    tmp_path: Path, objects: list[Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With only that linker on the machine, the library links and loads without the compiler."""
    if name == "ziglang":
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("the wheel ziglang is not installed")
        monkeypatch.setenv("PATH", "/nowhere")
    else:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / name).symlink_to(path)
        here = str(tmp_path / "bin" / name)
        monkeypatch.setattr(shutil, "which", lambda asked: here if asked == name else None)
    chosen = linker.find_linker()
    monkeypatch.undo()
    linker.link(objects, tmp_path / "model.so", chosen)
    code = """
import sys
from appliance.engine.runtime import runtime
module = runtime().load_module(sys.argv[1])
executable = module["vm_load_executable"]()
executable["vm_initialization"](1, 0, 1)
print(str(executable["_metadata"]())[:1])
"""
    run = [sys.executable, "-c", code, str(tmp_path / "model.so")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "{\n"


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    """A directory without a tensor of its architecture does not compile."""
    shutil.copytree(MODEL, tmp_path / "model")
    file = tmp_path / "model" / "tensor-cache.json"
    file.write_text(file.read_text().replace("model.norm.weight", "model.other.weight"))
    done = subprocess.run(
        command(tmp_path / "model", tmp_path / "cache"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "model.norm.weight" in json.loads(done.stdout.splitlines()[-1])["error"]
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("hidden_size", None, FormatError),
        ("num_hidden_layers", 0, FormatError),
        ("num_attention_heads", 3, FormatError),
        ("vocab_size", "many", FormatError),
        ("rope_scaling", {"rope_type": "mrope", "factor": 2}, UnsupportedError),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8}, FormatError),
    ],
)
def test_impossible_configurations_are_named(field: str, value: Any, error: type[BuildError]) -> None:
    """A missing, impossible or unknown field of `model_config` is named in the error."""
    config = json.loads((MODEL / CONFIG).read_text())["model_config"]
    with pytest.raises(error, match=field):
        llama.decoder(Fields("model_config", {**config, field: value}))
