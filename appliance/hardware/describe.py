"""What this machine is and what fits on it. Parsing is pure, so that recorded machines serve as tests."""

import csv
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from appliance.domain import Gpu, Hardware

# The extensions the kernels can use, by the names Linux prints in /proc/cpuinfo ("flags" on x86,
# "Features" on Arm; asimddp is the dot product, i8mm the int8 matrix multiply).
FEATURES = frozenset(
    {"avx", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "f16c", "fma"}
    | {"asimd", "asimddp", "asimdhp", "i8mm", "sve"}
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


# MIDR part numbers of the cores in the devices Hob is made for (Arm's Technical Reference Manuals).
ARM_CORES: Mapping[tuple[str, str], str] = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd0c"): "Neoverse N1",
}


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """GPUs in what `nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits` prints (MiB)."""
    gpus = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) == 2:
            mib = row[1].strip()
            gpus.append(Gpu(name=row[0].strip(), memory=int(mib) * 2**20 if mib.isdigit() else None))
    return tuple(gpus)


def detect() -> Hardware:
    """Describe this machine. Reads files and, where there is one, asks the NVIDIA driver; never fails."""
    cpu, features = _cpu()
    memory = psutil.virtual_memory()
    return Hardware(
        board=_board(),
        cpu=cpu or platform.processor() or "unknown processor",
        architecture=platform.machine(),
        features=features,
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=os.cpu_count() or 1,
        memory=memory.total,
        available=memory.available,
        gpus=_gpus(),
    )


def _cpu() -> tuple[str, tuple[str, ...]]:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        return parse_cpuinfo(cpuinfo.read_text())
    if sysctl := shutil.which("sysctl"):  # macOS; every Apple core has the dot product
        name = _output([sysctl, "-n", "machdep.cpu.brand_string"]).strip()
        return name, ("asimd", "asimddp") if platform.machine() == "arm64" else ()
    return "", ()


def _board() -> str:
    """The device tree names a Pi or Jetson, DMI names a PC."""
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        try:
            name = Path(path).read_text(errors="replace").strip(" \0\n")
        except OSError:  # not that kind of machine, or not readable without root
            continue
        if name and not re.fullmatch(r"(?i)to be filled.*|default string|system product name|none", name):
            return name
    return ""


def _gpus() -> tuple[Gpu, ...]:
    if smi := shutil.which("nvidia-smi"):
        return parse_nvidia_smi(
            _output([smi, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"])
        )
    return ()


def _output(command: list[str]) -> str:
    """What a command prints, or nothing if it cannot run: a broken driver must not stop `hob doctor`."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
