"""The machines that QEMU plays: what differs between them, as data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Bus = Literal["virtio", "nvme", "ahci", "sd"]


@dataclass(frozen=True)
class Board:
    """A kind of machine.

    Attributes:
        program: the QEMU that plays it.
        machine, cpu: its `-machine` and `-cpu`.
        cpus, memory: how many processors, and MiB.
        firmware, variables: UEFI's code and the fresh state of its variables, in the emulator's /usr/share;
            "" where QEMU itself loads the kernel.
        disk: what the system's disk hangs on.
        nic: the network card; "" where the test plugs one in.
        extra: further arguments.
        console: the kernel's name for the logged serial port; "" where nobody can tell it from outside.
        port: which serial port is logged.
        probe: the guest's name for the port that a `Probe` talks through; "" where there is none.
        patience: seconds within which it comes up, emulated, on a loaded machine of two cores.
    """

    program: str
    machine: str
    cpu: str
    cpus: int
    memory: int
    firmware: str
    variables: str
    disk: Bus
    nic: str
    extra: tuple[str, ...]
    console: str
    probe: str
    patience: float
    port: int = 0


@dataclass(frozen=True)
class DirectBoot:
    """What QEMU starts in the place of firmware that it cannot play, with the board's device tree."""

    program: Path
    tree: Path


PC = Board(
    program="qemu-system-x86_64",
    # The chip set's watchdog may reset the machine, as that of a real one does.
    machine="q35,graphics=on",
    cpu="max",
    cpus=2,
    memory=2048,
    firmware="OVMF/OVMF_CODE_4M.fd",
    variables="OVMF/OVMF_VARS_4M.fd",
    disk="virtio",
    nic="virtio-net-pci,romfile=",
    extra=("-global", "ICH9-LPC.noreboot=off", "-vga", "std", "-device", "qemu-xhci,id=usb"),
    console="ttyS0",
    probe="ttyS1",
    patience=300,
)

VIRT = Board(
    program="qemu-system-aarch64",
    machine="virt",
    cpu="cortex-a76",
    cpus=2,
    memory=2048,
    firmware="AAVMF/AAVMF_CODE.no-secboot.fd",
    variables="AAVMF/AAVMF_VARS.fd",
    disk="virtio",
    nic="virtio-net-pci,romfile=",
    extra=("-device", "virtio-rng-pci", "-device", "virtio-gpu-pci", "-device", "qemu-xhci,id=usb"),
    console="ttyAMA0",
    probe="",
    patience=480,
)

RASPBERRY_PI_3 = Board(
    program="qemu-system-aarch64",
    machine="raspi3b",
    cpu="cortex-a53",
    cpus=4,
    memory=1024,
    firmware="",
    variables="",
    disk="sd",
    nic="",
    extra=(),
    console="",
    probe="",
    patience=2400,
    port=1,  # the first one is Bluetooth's
)
