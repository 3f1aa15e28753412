"""The graph for GPUs, compiled for the processor, gives the logits of transformers and of the CPU's kernels.

Schedules and machine code are a GPU's own; everything before them is the same, and is proven here.
"""

from pathlib import Path

import numpy as np
import pytest
import tvm

from builder.compile import graph
from builder.compile.convert import convert
from builder.compile.gpu.backend import GpuBackend
from builder.compile.linker import link
from builder.compile.mlc import MLCDirectory
from builder.compile.quantise import QUANTISATIONS
from builder.compile.targets import parse_target
from builder.errors import UnsupportedError
from tests.builder.driver import Library
from tests.builder.families.test_references import LONG, SHORT, START, error, references
from tests.builder.families.tiny import write_tiny
from tests.builder.gpu.models import make
from tests.compiled import GOLDEN, REFERENCES


def compile_on_processor(directory: Path, folder: Path) -> Path:
    """The library that a GPU would get, but for this processor."""
    model = MLCDirectory.open(directory)
    target = tvm.target.Target(dict(parse_target("cpu-generic").tvm()))
    decoder = graph.read_decoder(model)
    backend = GpuBackend(target, decoder.attention, QUANTISATIONS[model.quantization], decoder.vocab)
    module = graph.build_module(model, decoder, backend, graph.GPU_PREFILL_CHUNK)
    lowered = graph.lower(module, target)
    usage = graph.memory_usage(lowered)
    lowered.update(graph.lower(graph.metadata_module(module, usage), target))
    executable = tvm.compile(lowered, target, relax_pipeline=tvm.transform.Sequential([]))
    library = folder / "library.so"
    executable.export_library(
        str(library),
        workspace_dir=str(folder),
        fcompile=lambda _output, files, **_options: link([Path(file) for file in files], library),
    )
    return library


@pytest.mark.parametrize("name", ["llama", "qwen2", "smollm3", "phi3-long"])
def test_families(name: str, tmp_path: Path) -> None:
    """Prompts, single and together, and tokens after them: within 1e-4 of transformers in float32."""
    make(name, tmp_path, "q0f32")
    library = Library(tmp_path / "model", path=compile_on_processor(tmp_path / "model", tmp_path))
    expected = references(name)
    library.add(0, 1)
    both = library.prefill({1: SHORT, 0: LONG[:START]})
    assert error(both[0], expected["short"][-1]) < 1e-4
    assert error(both[1], expected["long"][0]) < 1e-4
    for row, token in enumerate(LONG[START:], 1):
        logits = library.decode({0: token, 1: token}) if row % 2 else library.decode({0: token})
        assert error(logits[0], expected["long"][row]) < 1e-4


def test_the_golden_model_in_float16(tmp_path: Path) -> None:
    """Four-bit weights, float16 activations: the tokens that transformers gives for the same weights."""
    library = Library(GOLDEN / "q4f16_1", path=compile_on_processor(GOLDEN / "q4f16_1", tmp_path))
    for reference in REFERENCES["q4f16_1"]:
        library.add(0)
        found = [library.prefill({0: reference.prompt})[0]]
        assert np.abs(found[0] - reference.logits).max() < 0.01
        while len(found) < len(reference.greedy_ids):
            found.append(library.decode({0: int(found[-1].argmax())})[0])
        assert [int(logits.argmax()) for logits in found] == reference.greedy_ids


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("qwen3", "q4f32_1"), ("qwen2", "q4f16_0"), ("llama", "q3f16_1"), ("qwen2", "q0f16")],
)
def test_weight_formats(name: str, quantization: str, tmp_path: Path) -> None:
    """Every layout on disk is read as the CPU's exact kernels read it, whatever the family."""
    make(name, tmp_path, quantization)
    own = Library(tmp_path / "model", path=compile_on_processor(tmp_path / "model", tmp_path))
    exact = Library(tmp_path / "model")
    logits = []
    for library in (own, exact):
        library.add(0)
        logits.append([library.prefill({0: LONG})[0], library.decode({0: 5})[0]])
    near = 1e-4 if quantization == "q4f32_1" else 0.02
    assert np.abs(np.array(logits[0]) - logits[1]).max() < near


@pytest.mark.parametrize(
    ("name", "quantization", "lacking"),
    [
        ("gemma2", "q4f16_1", "soft cap of 1.5"),
        ("gemma3", "q4f16_1", "sliding windows"),
        ("mistral", "q4f16_1", "sliding windows"),
        ("llama", "q4bf16_1", "bfloat16"),
    ],
)
def test_what_has_no_gpu_kernels_is_refused(
    name: str, quantization: str, lacking: str, tmp_path: Path
) -> None:
    """The error names what is lacking, before anything is compiled."""
    convert(write_tiny(name, tmp_path / "hf"), tmp_path / "model", quantization)
    model = MLCDirectory.open(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=lacking) as caught:
        graph.choose_backend(
            graph.read_decoder(model), QUANTISATIONS[quantization], parse_target("cuda-sm_87"), "fast"
        )
    assert caught.value.hint
