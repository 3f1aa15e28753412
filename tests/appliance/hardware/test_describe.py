"""Descriptions of machines are read right, recorded ones and this one."""

import json
import os
from pathlib import Path

import pytest

from appliance.hardware.describe import count_cores, describe, detect, parse_cpuinfo
from appliance.hardware.gpus import (
    merge,
    parse_nvidia_smi,
    parse_system_profiler,
    parse_tegra,
    parse_uevents,
    parse_vulkaninfo,
)
from appliance.hardware.memory import Memory
from appliance.hardware.recording import Recording, record, uevents
from tests.appliance.hardware.machines import FOLDER, MACHINES, recording, room


@pytest.mark.parametrize("name", MACHINES)
def test_recorded_machines(name: str) -> None:
    """Each recording yields the whole description that was checked by hand."""
    expected = json.loads((FOLDER / name / "expected.json").read_text())["hardware"]
    assert describe(recording(name), room(name)).model_dump(mode="json") == expected


def test_this_machine() -> None:
    """Detection on the machine at hand is complete and plausible."""
    machine = detect()
    assert machine.cpu
    assert machine.architecture == os.uname().machine
    assert 1 <= machine.cores <= machine.threads
    assert 0 < machine.available <= machine.memory


def test_a_machine_that_says_nothing() -> None:
    """Without any source there still is a processor, with at least one core."""
    machine = describe(Recording(machine="riscv64"), Memory(2, 1))
    assert machine.cpu == "unknown processor"
    assert machine.cores >= 1
    assert machine.gpus == ()


def test_unknown_arm_cores() -> None:
    """A core whose number is not known is named by it, or as lscpu names it."""
    cpuinfo = "processor : 0\nCPU implementer : 0x99\nCPU part : 0xfff\n"
    assert parse_cpuinfo(cpuinfo) == ("Arm core 0xfff", ())
    named = Recording(machine="aarch64", cpuinfo=cpuinfo, lscpu="Vendor ID:   ARM\nModel name:  Cortex-X9\n")
    assert describe(named, Memory(2, 1)).cpu == "Cortex-X9"


def test_boards_whose_maker_filled_nothing_in() -> None:
    """What DMI holds by default is no name."""
    for product in ("Default string\n", "To Be Filled By O.E.M.\n", "System Product Name\n", ""):
        assert describe(Recording(product=product), Memory(2, 1)).board == ""
    assert describe(Recording(product="NUC12WSKi5\n"), Memory(2, 1)).board == "NUC12WSKi5"


def test_hyper_threads_are_no_cores() -> None:
    """Logical processors of one core share its id; those without ids count one by one."""
    smt = "".join(f"processor : {n}\nphysical id : {n // 4}\ncore id : {n % 2}\n\n" for n in range(8))
    assert count_cores(smt) == (4, 8)
    assert count_cores("processor : 0\n\nprocessor : 1\n\nHardware : BCM2835\n") == (2, 2)


def test_nvidia_smi() -> None:
    """Memory is MiB; an integrated GPU has none; drivers that know less say less; complaints are no GPUs."""
    rows = (
        "NVIDIA GeForce RTX 4090, 24564, 8.9, 0x268410DE\nOrin (nvgpu), [N/A], 8.7, [N/A]\nTesla K80, 11441\n"
    )
    gpus = list(parse_nvidia_smi(rows))
    assert [(gpu.name, gpu.memory, gpu.compute_capability, gpu.kind) for gpu in gpus] == [
        ("NVIDIA GeForce RTX 4090", 24564 * 2**20, "8.9", "discrete"),
        ("Orin (nvgpu)", None, "8.7", "integrated"),
        ("Tesla K80", 11441 * 2**20, "", "discrete"),
    ]
    assert list(parse_nvidia_smi("Failed to initialize NVML: Driver/library version mismatch\n")) == []


@pytest.mark.parametrize(
    "text", ["", "Cannot create Vulkan instance.\n", "GPU0:\n", "Devices:\n========\nGPU0\n"]
)
def test_vulkaninfo_without_devices(text: str) -> None:
    """What is no device yields none."""
    assert list(parse_vulkaninfo(text)) == []


def test_an_intel_mac_s_card_is_not_apple_s() -> None:
    """Metal on another maker's card is told apart; text that is no JSON yields nothing."""
    text = '{"SPDisplaysDataType": [{"sppci_model": "Radeon Pro Vega 64", "spdisplays_metal": "yes"}, {}]}'
    (gpu,) = parse_system_profiler(text)
    assert (gpu.vendor, gpu.metal) == ("", True)
    assert list(parse_system_profiler("nothing\n")) == []


def test_two_cards_and_three_accounts() -> None:
    """Each card is listed once, with what every tool knows of it; best first, imitations last."""
    vulkaninfo = (FOLDER / "n100" / "vulkaninfo").read_text()
    cards = (
        "DRIVER=i915\nPCI_ID=8086:46D1\n\nDRIVER=nvidia\nPCI_ID=10DE:2684\n\nDRIVER=ast\nPCI_ID=1A03:2000\n"
    )
    smi = "NVIDIA GeForce RTX 4090, 24564, 8.9, 0x268410DE\n"
    gpus = merge(parse_nvidia_smi(smi), parse_vulkaninfo(vulkaninfo), parse_uevents(cards))
    assert [gpu.name for gpu in gpus] == [
        "NVIDIA GeForce RTX 4090",
        "Intel(R) Graphics (ADL-N)",
        "llvmpipe (LLVM 19.1.7, 256 bits)",
    ]
    twins = merge(parse_nvidia_smi(smi + smi), parse_uevents("PCI_ID=10DE:2684\n\nPCI_ID=10DE:2684\n"))
    assert len(twins) == 2


def test_tegra() -> None:
    """The most special name that is known counts; a Raspberry Pi is none."""
    (gpu,) = parse_tegra("nvidia,p3767-0005\0nvidia,tegra234\0")
    assert gpu.compute_capability == "8.7"
    assert list(parse_tegra("raspberrypi,5-model-b\0brcm,bcm2712\0")) == []


def test_sysfs(tmp_path: Path) -> None:
    """Display controllers are found with a driver or without, other cards not; a card is listed once."""
    for slot, pci_class, text in (
        ("0000:00:02.0", "0x030000", "PCI_ID=10DE:1B80\n"),
        ("0000:03:00.0", "0x038000", "DRIVER=amdgpu\nPCI_ID=1002:744C\n"),
        ("0000:04:00.0", "0x020000", "DRIVER=igc\nPCI_ID=8086:125C\n"),
    ):
        device = tmp_path / "devices" / slot
        device.mkdir(parents=True)
        (device / "class").write_text(f"{pci_class}\n")
        (device / "uevent").write_text(text)
        (tmp_path / "bus/pci/devices").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bus/pci/devices" / slot).symlink_to(device)
    (tmp_path / "devices/0000:03:00.0/mem_info_vram_total").write_text("25753026560\n")
    card = tmp_path / "class/drm/card1"
    card.mkdir(parents=True)
    (card / "device").symlink_to(tmp_path / "devices/0000:03:00.0")
    (tmp_path / "class/drm/card1-HDMI-A-1").mkdir()
    found = list(parse_uevents(uevents(tmp_path)))
    assert [(gpu.vendor, gpu.driver, gpu.memory) for gpu in found] == [
        ("nvidia", "", None),
        ("amd", "amdgpu", 25753026560),
    ]


def test_broken_tools_are_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's tool that fails, or prints what is no text, is as one that is not there."""
    for name, script in (("nvidia-smi", "echo no driver; exit 9"), ("vulkaninfo", "printf 'GPU0:\\n\\377'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    machine = record()
    assert machine.nvidia_smi == ""
    assert describe(machine, Memory(2, 1)).gpus == describe(recording("cloud-vm"), Memory(2, 1)).gpus
