"""Libraries compiled here for 64-bit Arm processors run there: the engine itself, under QEMU.

The Arm side is a folder with Debian's Python and the engine's wheels, which `.ci/arm64-root FOLDER` makes;
HOB_TEST_ARM64 names it.
"""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from builder.compile import check_library, compile_model, linker
from builder.compile.mlc import MLCDirectory
from builder.compile.targets import machine, parse_target
from builder.errors import StaleLibraryError, ToolMissingError
from tests.compiled import REFERENCES, golden

ROOT = Path(os.environ.get("HOB_TEST_ARM64", "/nowhere"))
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
MODEL = golden("q4f16_1")

pytestmark = pytest.mark.skipif(machine() != "x86_64", reason="compiles for another processor than x86-64")


def has_linker() -> bool:
    """Whether this machine links Arm code."""
    try:
        linker.find_linker("aarch64")
    except ToolMissingError:
        return False
    return True


emulated = [
    pytest.mark.skipif(QEMU is None, reason="QEMU's user emulation (qemu-aarch64) is not installed"),
    pytest.mark.skipif(not (ROOT / "site").is_dir(), reason="HOB_TEST_ARM64 names no folder"),
    pytest.mark.skipif(not has_linker(), reason="no linker for aarch64: neither lld, binutils' nor ziglang"),
    pytest.mark.slow,
]

PROBE = """
import json, sys
from pathlib import Path
from appliance.engine.probe import probe
directory, ids, *libraries = sys.argv[1:]
for library in libraries:
    found = probe(Path(directory), Path(library), json.loads(ids), 32)
    print(json.dumps({"ids": found.greedy_ids, "logits": [score.logit for score in found.top[0]]}))
"""


def run(code: str, *arguments: str) -> list[Any]:
    """Run Python on the Arm side; what it prints, line by line from JSON."""
    assert QEMU is not None
    program = [QEMU, "-L", str(ROOT), str(ROOT / "usr/bin/python3.11"), "-S", "-c", code, *arguments]
    paths = os.pathsep.join([str(ROOT / "site"), str(Path(__file__).parents[2])])
    environment = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class TestEmulated:
    """On an emulated Cortex-A76."""

    pytestmark = emulated

    def test_compiled_models_give_the_references_tokens(self, tmp_path: Path) -> None:
        """Plain vector code and dot products: the tokens and logits that transformers gives."""
        generic, dots = parse_target("aarch64-generic"), parse_target("aarch64-neondot")
        libraries = [
            compile_model(MODEL, tmp_path, target=generic, kernels="exact"),
            compile_model(MODEL, tmp_path, target=dots, kernels="fast"),
        ]
        reference = REFERENCES["q4f16_1"][0]
        found = run(PROBE, str(MODEL), json.dumps(reference.prompt), *map(str, libraries))
        best = sorted(reference.logits.tolist(), reverse=True)[:5]
        for one, near in zip(found, (0.01, 0.2), strict=True):
            assert one["ids"] == reference.greedy_ids
            assert one["logits"] == pytest.approx(best, abs=near)
        # The same library on this processor is refused by name, not loaded.
        with pytest.raises(StaleLibraryError, match="aarch64 processors"):
            check_library(libraries[0], MLCDirectory.open(MODEL))

    def test_the_cpu_is_recognised(self) -> None:
        """Detection on Arm finds the dot product."""
        code = (
            "import json; from builder.compile.targets import detect_target as d; print(json.dumps(d().key))"
        )
        assert run(code) == ["aarch64-neondot"]


def test_without_a_cross_linker_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linker for this machine is of no use for another one."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", {"ld": "/usr/bin/ld", "gcc": "/usr/bin/gcc"}.get)
    with pytest.raises(ToolMissingError, match="no linker for aarch64") as caught:
        linker.find_linker("aarch64")
    assert "binutils-aarch64-linux-gnu" in caught.value.hint
    assert linker.find_linker() == ["/usr/bin/ld"]
