"""Targets are instruction-set levels, chosen from what the operating system says of the CPU, or GPUs."""

from pathlib import Path

import pytest

from builder.compile.targets import LEVELS, choose, cpu_features, detect_target, machine, parse_target
from builder.errors import UnsupportedError

AVX2 = frozenset({"sse4_2", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("arch", "features", "key"),
    [
        ("x86_64", AVX512 | {"avx512_vnni"}, "x86_64-avx512vnni"),
        ("x86_64", AVX512, "x86_64-avx2"),  # AVX-512 without the int8 dot product
        ("x86_64", AVX2 | {"avx_vnni"}, "x86_64-avx2"),
        ("x86_64", AVX2 - {"fma"}, "x86_64-generic"),
        ("x86_64", frozenset(), "x86_64-generic"),
        ("aarch64", frozenset({"fp", "asimd"}), "aarch64-generic"),
        ("aarch64", frozenset({"fp", "asimd", "asimddp"}), "aarch64-neondot"),
        ("riscv64", frozenset(), "riscv64-generic"),
    ],
)
def test_the_best_level_that_a_cpu_has(arch: str, features: frozenset[str], key: str) -> None:
    """A level is chosen only if the CPU has every feature of it."""
    target = choose(arch, features)
    assert target.key == key
    assert features.issuperset(target.requires)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (
            "processor : 0\nflags\t\t: fpu avx2 fma\nbugs : x\n\nprocessor : 1\nflags : fpu\n",
            {"fpu", "avx2", "fma"},
        ),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", {"fp", "asimd", "asimddp"}),
        ("", set()),
    ],
)
def test_features_come_from_the_kernels_list(tmp_path: Path, text: str, features: set[str]) -> None:
    """x86 and ARM spell the line differently; a file without one tells nothing."""
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_features(tmp_path / "cpuinfo") == features


def test_this_machine_runs_what_is_detected() -> None:
    """Detection claims no feature that is not there, and `auto` and `cpu` mean it."""
    target = detect_target()
    assert target.arch == machine()
    assert cpu_features().issuperset(target.requires)
    assert parse_target("auto") == parse_target("cpu") == target
    assert parse_target(target.key) == parse_target(f"cpu-{target.isa}") == target


def test_keys_name_targets() -> None:
    """Every level has a key of its own, which `--target` takes on any machine."""
    targets = [parse_target(f"{level.arch}-{level.isa}") for level in LEVELS]
    assert len({target.key for target in targets}) == len(LEVELS)
    foreign = next(target for target in targets if target.arch != machine())
    assert foreign.tvm()["mtriple"].startswith(foreign.arch)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cuda-sm_87", "aarch64-cuda-sm_87"),  # a Jetson, whatever compiles for it
        ("cuda-sm_89", f"{machine()}-cuda-sm_89"),
        ("aarch64-cuda-sm_90a", "aarch64-cuda-sm_90a"),
        ("vulkan", f"{machine()}-vulkan"),
        ("metal", "aarch64-metal"),
    ],
)
def test_gpus(name: str, key: str) -> None:
    """A GPU's name tells its processor; the key names both, and is a target's name itself."""
    target = parse_target(name)
    assert target.key == key
    assert parse_target(key) == target
    description = target.tvm()
    assert description["kind"] == target.kind == name.removeprefix("aarch64-").partition("-")[0]
    assert description["host"]["kind"] == "llvm"
    assert description.get("arch", "") == target.device
    assert target.requires == ()  # the code beside the GPU's runs on any processor of the architecture


def test_the_gpu_of_this_machine_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "cuda" is what nvidia-smi says; where it says nothing, the error tells how to name a GPU."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="no NVIDIA GPU") as caught:
        parse_target("cuda")
    assert "cuda-sm_87" in caught.value.hint
    program.write_text("#!/bin/sh\necho 8.9\necho 7.5\n")
    program.chmod(0o755)
    assert parse_target("cuda") == parse_target("cuda-sm_89")
    program.write_text("#!/bin/sh\necho 'couldn'\\''t communicate with the NVIDIA driver'\nexit 9\n")
    with pytest.raises(UnsupportedError, match="no NVIDIA GPU"):
        parse_target("cuda")


UNKNOWN = ["", "gpu", "cpu-", "cpu-avx9", "x86_64", "mips-generic"]
UNKNOWN += ["cuda-87", "cuda-sm_", "vulkan-1", "metal-m1", "mips-cuda-sm_87"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_targets_are_refused(name: str) -> None:
    """The error names the value and lists what there is."""
    with pytest.raises(UnsupportedError, match="unknown target") as caught:
        parse_target(name)
    assert repr(name) in str(caught.value)
    assert "cpu-generic" in caught.value.hint
