"""What a recorded machine is: processor, board, GPUs. Pure, so that recorded machines serve as tests."""

import re
from collections.abc import Mapping

import psutil

from appliance.domain import Hardware
from appliance.hardware import gpus
from appliance.hardware.memory import Memory, memory
from appliance.hardware.recording import Recording, record

# The extensions the kernels can use, by the names Linux prints in /proc/cpuinfo ("flags" on x86,
# "Features" on Arm; asimddp is the dot product, i8mm the int8 matrix multiply).
FEATURES = frozenset(
    {"avx", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "f16c", "fma"}
    | {"asimd", "asimddp", "asimdhp", "i8mm", "sve"}
)

# MIDR part numbers of the cores in the devices Hob is made for (Arm's Technical Reference Manuals).
ARM_CORES: Mapping[tuple[str, str], str] = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse N1",
    ("0x41", "0xd42"): "Cortex-A78AE",
}

# What macOS calls the extensions of Apple's processors, all of which have the vector unit.
APPLE_FEATURES: Mapping[str, str] = {
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}


def detect() -> Hardware:
    """This machine. Takes a moment where drivers' tools are installed; never fails."""
    return describe(record(), memory())


def describe(machine: Recording, room: Memory) -> Hardware:
    """Understand what a machine said of itself. `room` is the memory there is for use."""
    if machine.sysctl:
        cpu, features, cores, threads, board = _apple(machine)
    else:
        cpu, features = parse_cpuinfo(machine.cpuinfo)
        if not cpu or cpu.startswith("Arm core"):
            cpu = _field(machine.lscpu, "Model name") or cpu
        cores, threads = count_cores(machine.cpuinfo)
        board = _board(machine)
    return Hardware(
        board=board,
        cpu=cpu or "unknown processor",
        architecture=machine.machine,
        features=features,
        cores=cores or psutil.cpu_count(logical=False) or 1,
        threads=threads or psutil.cpu_count() or 1,
        memory=room.total,
        available=room.available,
        gpus=gpus.merge(
            gpus.parse_nvidia_smi(machine.nvidia_smi),
            gpus.parse_tegra(machine.compatible),
            gpus.parse_vulkaninfo(machine.vulkaninfo),
            gpus.parse_uevents(machine.uevents),
            gpus.parse_system_profiler(machine.system_profiler),
        ),
    )


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Name and known features of the first processor in the text of Linux's /proc/cpuinfo.

    Arm kernels print no name; the implementer and part numbers stand for it then
    (Arm's MIDR_EL1 register, as the kernel prints it).
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    name = fields.get("model name", "")
    if not name and "CPU part" in fields:
        name = ARM_CORES.get(
            (fields.get("CPU implementer", ""), fields["CPU part"]), f"Arm core {fields['CPU part']}"
        )
    return name, tuple(sorted(FEATURES.intersection(flags.split())))


def count_cores(cpuinfo: str) -> tuple[int, int]:
    """Physical and logical processors in /proc/cpuinfo; Arm kernels do not tell them apart, and need not."""
    blocks = [block for block in cpuinfo.split("\n\n") if re.search(r"^processor\s*:", block, re.MULTILINE)]
    cores = {
        (_field(block, "physical id"), _field(block, "core id") or number)
        for number, block in enumerate(blocks)
    }
    return len(cores), len(blocks)


def _apple(machine: Recording) -> tuple[str, tuple[str, ...], int, int, str]:
    """Processor, features, cores, threads and board of a Mac."""
    found = {name for key, name in APPLE_FEATURES.items() if _field(machine.sysctl, key) == "1"}
    if machine.machine == "arm64":
        found.add("asimd")
    counts = [_field(machine.sysctl, key) for key in ("hw.physicalcpu", "hw.logicalcpu")]
    cores, threads = (int(count) if count.isdigit() else 0 for count in counts)
    cpu = _field(machine.sysctl, "machdep.cpu.brand_string")
    return cpu, tuple(sorted(found)), cores, threads, _field(machine.sysctl, "hw.model")


def _board(machine: Recording) -> str:
    """The device tree names a Pi or Jetson, DMI names a PC, where its maker filled that in."""
    for name in (machine.model.strip(" \0\n"), machine.product.strip()):
        if name and not re.fullmatch(r"(?i)to be filled.*|default string|system product name|none", name):
            return name
    return ""


def _field(text: str, key: str) -> str:
    """The value after the first "key:" that begins a line; empty where there is none."""
    match = re.search(rf"^{re.escape(key)}\s*:[ \t]*(.*?)\s*$", text, re.MULTILINE)
    return match[1] if match else ""
