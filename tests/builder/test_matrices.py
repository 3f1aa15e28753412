"""How a CPU library holds each form of matrix."""

import pytest

from builder.compile.families.parameters import matrix
from builder.compile.kernels.isa import AVX2
from builder.compile.matrices import hold
from builder.compile.quantise import QUANTISATIONS
from builder.errors import UnsupportedError

LINEAR = matrix("mlp", 64, ("mlp", 48))


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_fast_is_for_four_bits(name: str) -> None:
    """Four bits are packed for int8 activations; everything else is held as for the exact kernels."""
    form = QUANTISATIONS[name].form("linear")
    stored = form.tensors(LINEAR.name, LINEAR.shape)
    exact, fast = (hold(LINEAR, stored, form, AVX2, fast=chosen) for chosen in (False, True))
    assert exact.reads == "rows"
    assert (fast.reads == "blocks") == (form.bits == 4)
    assert (fast.step == exact.step) == (form.bits != 4)


@pytest.mark.parametrize("name", ["q4f16_1", "q4bf16_1", "q4f32_1", "q0f16", "q0bf16", "q0f32"])
def test_exact_kernels_read_most_forms_as_they_lie(name: str) -> None:
    """No kernel runs at load, and the tensors keep their shapes."""
    form = QUANTISATIONS[name].form("linear")
    stored = form.tensors(LINEAR.name, LINEAR.shape)
    step = hold(LINEAR, stored, form, AVX2, fast=False).step
    assert step.function is None
    assert [tensor.shape for tensor in step.outputs] == [tensor.shape for tensor in stored]


def test_three_bits_stay_small() -> None:
    """Bit planes take three bits per weight, less than the words of ten levels on disk."""
    form = QUANTISATIONS["q3f16_1"].form("linear")
    step = hold(LINEAR, form.tensors(LINEAR.name, LINEAR.shape), form, AVX2, fast=True).step
    planes, scales = step.outputs
    assert (planes.shape, planes.dtype) == ((48, 2, 3), "uint32")
    assert (scales.shape, scales.dtype) == ((48, 2), "float16")


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_width_must_fill_blocks(name: str) -> None:
    """Kernels work in blocks of 32 columns; another width is refused with its value."""
    narrow = matrix("mlp", 48, ("mlp", 48))
    form = QUANTISATIONS[name].form("linear")
    with pytest.raises(UnsupportedError, match="48 is not a multiple of 32"):
        hold(narrow, form.tensors(narrow.name, narrow.shape), form, AVX2, fast=True).linear(rows=1)
