"""What the machine code of the kernels contains, for machines that the tests do not run on."""

import re

import pytest
import tvm

from builder.compile.kernels import activation, embedding, exact, packing, paged_attention, qkv, rotary, w4a8
from builder.compile.kernels.heads import Heads, Scoring
from builder.compile.kernels.isa import AVX2, AVX512_VNNI, GENERIC, NEON_DOT, Isa

ARM = {"mtriple": "aarch64-unknown-linux-gnu", "mcpu": "generic"}
X86 = {"mtriple": "x86_64-unknown-linux-gnu", "mcpu": "x86-64"}


def assembly(kernels: list[object], target: dict[str, object]) -> str:
    module = tvm.IRModule({str(kernel.attrs["global_symbol"]): kernel for kernel in kernels})  # type: ignore[attr-defined] # TVM is untyped
    compiled = tvm.compile(module, tvm.target.Target({"kind": "llvm", **target}))
    return str(compiled.mod.inspect_source("asm"))


@pytest.mark.parametrize(
    ("isa", "target", "instruction"),
    [
        (AVX512_VNNI, {**X86, "mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]}, r"vpdpbusd\s.*zmm"),
        (AVX2, {**X86, "mcpu": "x86-64-v3"}, r"vpmaddubsw\s.*ymm"),
        (NEON_DOT, {**ARM, "mattr": ["+dotprod"]}, r"sdot\s+v\d+\.4s"),
    ],
    ids=lambda value: value.name if isinstance(value, Isa) else "",
)
def test_dot_product_instruction(isa: Isa, target: dict[str, object], instruction: str) -> None:
    """A linear of each instruction set uses that set's dot product, eight per 32 columns."""
    code = assembly([w4a8.linear(64, 64, isa, rows=1)], target)
    assert len(re.findall(instruction, code)) >= 8


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86_64", "aarch64"])
def test_plain_vectors_call_no_routine(target: dict[str, object]) -> None:
    """Plain code calls nothing of libm but log2f, nothing of a compiler's runtime."""
    heads = Heads(1, 2, 32)
    code = assembly(
        [
            activation.gated_quantise(64, "gelu"),
            activation.soft_cap(64, 30.0),
            activation.rms_norm(64, 1e-5),
            embedding.lookup_packed(32, 64, GENERIC),
            exact.linear(32, 64, GENERIC, weight="q4f16"),
            exact.linear(32, 64, GENERIC, weight="float16"),
            packing.pack(32, 64, GENERIC),
            paged_attention.decode(heads, GENERIC, Scoring(window=64, cap=50.0)),
            qkv.finish(heads, eps=1e-6, rates=(1.0,) * 16),
            rotary.split_rotary(heads, (1.0,) * 16),
            w4a8.linear(32, 64, GENERIC),
        ],
        target,
    )
    called = set(re.findall(r"^\s+(?:callq?|bl)\s+(\w+)", code, flags=re.MULTILINE))
    own = {name for name in called if name.endswith("_compute_") or name.startswith(("TVM", "__tvm"))}
    assert called - own == {"log2f"}
