"""What this machine's TVM makes code for, and what it says of the rest."""

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import tvm

from builder.compile import graph, library
from builder.compile.gpu.backend import GpuBackend
from builder.compile.mlc import MLCDirectory
from builder.compile.quantise import QUANTISATIONS
from builder.compile.targets import parse_target
from builder.errors import UnsupportedError
from tests.builder.gpu.models import make


def test_metal_code_is_generated(tmp_path: Path) -> None:
    """The graph becomes Metal kernels, though nothing here links or runs them."""
    if tvm.get_global_func("target.build.metal", allow_missing=True) is None:
        pytest.skip("this TVM has no code generator for Metal")
    model = MLCDirectory.open(make("llama", tmp_path, "q4f16_1"))
    target = tvm.target.Target({**parse_target("metal").tvm(), "host": {"kind": "llvm"}})
    decoder = graph.read_decoder(model)
    backend = GpuBackend(target, decoder.attention, QUANTISATIONS["q4f16_1"], decoder.vocab)
    lowered = graph.lower(graph.build_module(model, decoder, backend, graph.GPU_PREFILL_CHUNK), target)
    executable = tvm.compile(lowered, target, relax_pipeline=tvm.transform.Sequential([]))
    source = executable.mod.imports[0].imports[0].inspect_source()
    assert "#include <metal_stdlib>" in source
    for kernel in ("linear", "lookup", "gated", "heads", "batch_decode_paged_kv", "apply_penalty_inplace"):
        assert f"kernel void {kernel}" in source


def test_what_tvm_lacks_is_named_with_the_wheel_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock wheel has no Vulkan; Metal needs a Mac."""
    if tvm.get_global_func("target.build.vulkan", allow_missing=True) is None:
        with pytest.raises(UnsupportedError, match="no Vulkan code") as caught:
            graph.check_target(parse_target("vulkan"))
        assert "mlc-ai-nightly-cpu" in caught.value.hint
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UnsupportedError, match="linked on a Mac") as caught:
        graph.check_target(parse_target("metal"))
    assert "apache-tvm" in caught.value.hint


def test_another_tvm_makes_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLC-LLM's TVM is the package `tvm` under another name; its libraries are not taken for PyPI's."""

    def version(name: str) -> str:
        if name == "apache-tvm":
            raise PackageNotFoundError(name)
        return "0.21"

    monkeypatch.setattr(library, "version", version)
    monkeypatch.setattr(library, "packages_distributions", lambda: {"tvm": ["mlc-ai-nightly-cpu"] * 2})
    assert library.tvm_version.__wrapped__() == "mlc-ai-nightly-cpu 0.21"
