"""Descriptions of machines are read right, recorded ones and this one."""

import os

import pytest

from appliance.hardware.describe import detect, parse_cpuinfo, parse_nvidia_smi
from appliance.hardware.memory import kv_bytes, largest_model

PI_4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

processor\t: 1
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
"""
PI_5 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""
N100 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) N100
flags\t\t: fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 bmi2 avx_vnni
"""


@pytest.mark.parametrize(
    ("cpuinfo", "name", "features"),
    [
        (PI_4, "Cortex-A72", ("asimd",)),
        (PI_5, "Cortex-A76", ("asimd", "asimddp", "asimdhp")),
        (N100, "Intel(R) N100", ("avx", "avx2", "avx_vnni", "f16c", "fma")),
        ("CPU implementer : 0x99\nCPU part : 0xfff\n", "Arm core 0xfff", ()),
        ("", "", ()),
    ],
    ids=["pi4", "pi5", "n100", "unknown", "empty"],
)
def test_cpuinfo(cpuinfo: str, name: str, features: tuple[str, ...]) -> None:
    """Name and extensions come from the first processor; Arm cores are named by their part number."""
    assert parse_cpuinfo(cpuinfo) == (name, features)


def test_nvidia_smi() -> None:
    """Memory is MiB; an integrated GPU that reports none has None; other text gives no GPU."""
    gpus = parse_nvidia_smi("NVIDIA GeForce RTX 4090, 24564\nOrin (nvgpu), [N/A]\n")
    assert [(gpu.name, gpu.memory) for gpu in gpus] == [
        ("NVIDIA GeForce RTX 4090", 24564 * 2**20),
        ("Orin (nvgpu)", None),
    ]
    assert parse_nvidia_smi("Failed to initialize NVML: Driver/library version mismatch\n") == ()


def test_this_machine() -> None:
    """Detection on the machine at hand is complete and plausible."""
    machine = detect()
    assert machine.cpu
    assert machine.architecture == os.uname().machine
    assert 1 <= machine.cores <= machine.threads
    assert 0 < machine.available <= machine.memory


def test_kv_bytes_of_a_known_shape() -> None:
    """Llama-3.2-1B: 16 layers, 8 KV heads of 64, float32 K and V: 64 KiB a token."""
    shape = {"num_hidden_layers": 16, "num_key_value_heads": 8, "num_attention_heads": 32, "head_dim": 64}
    assert kv_bytes({"model_config": shape}, 4096) == 4096 * 64 * 1024


def test_largest_model_grows_with_memory() -> None:
    """Nothing fits into nothing; 8 GiB hold a model of ten-odd billion 4-bit weights, not twenty."""
    assert largest_model(0) == 0
    assert 10 < largest_model(8 * 2**30) < 15
