"""What a machine says about itself, as text: read here, understood in `describe`."""

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# The columns of `nvidia-smi` that `gpus.parse_nvidia_smi` reads; drivers before 510 lack the third.
NVIDIA_COLUMNS = ("name", "memory.total", "compute_cap", "pci.device_id")

SYSCTL_KEYS = (
    "hw.model",
    "hw.memsize",
    "hw.physicalcpu",
    "hw.logicalcpu",
    "hw.optional.arm.FEAT_DotProd",
    "hw.optional.arm.FEAT_FP16",
    "hw.optional.arm.FEAT_I8MM",
    "machdep.cpu.brand_string",
)


@dataclass(frozen=True, slots=True)
class Recording:
    """Texts as the system gives them; a source that this kind of machine has not is empty.

    Attributes:
        machine: `uname -m`.
        cpuinfo: Linux's /proc/cpuinfo.
        lscpu: `lscpu`, asked only where cpuinfo names no processor, as on Arm.
        model, compatible: of the device tree; `compatible` is a list that NUL characters separate.
        product: DMI's product name.
        uevents: sysfs's description of each graphics processor, an empty line between two.
        nvidia_smi: `nvidia-smi --query-gpu=name,memory.total,compute_cap,pci.device_id` as CSV.
        vulkaninfo: `vulkaninfo --summary`.
        sysctl: macOS's `sysctl` of SYSCTL_KEYS.
        system_profiler: macOS's `system_profiler SPDisplaysDataType -json`.
    """

    machine: str = ""
    cpuinfo: str = ""
    lscpu: str = ""
    model: str = ""
    compatible: str = ""
    product: str = ""
    uevents: str = ""
    nvidia_smi: str = ""
    vulkaninfo: str = ""
    sysctl: str = ""
    system_profiler: str = ""


def record(root: Path = Path("/")) -> Recording:
    """Ask this machine. Takes a moment where drivers' tools are installed; never fails.

    `root` is where files are read; the programs are this machine's own.
    """
    if sys.platform == "darwin":
        return Recording(
            machine=platform.machine(),
            sysctl=_output("sysctl", *SYSCTL_KEYS),
            system_profiler=_output("system_profiler", "SPDisplaysDataType", "-json"),
        )
    cpuinfo = _text(root / "proc/cpuinfo")
    return Recording(
        machine=platform.machine(),
        cpuinfo=cpuinfo,
        lscpu="" if "model name" in cpuinfo else _output("lscpu"),
        model=_text(root / "proc/device-tree/model"),
        compatible=_text(root / "proc/device-tree/compatible"),
        product=_text(root / "sys/class/dmi/id/product_name"),
        uevents=uevents(root / "sys"),
        nvidia_smi=_nvidia_smi(),
        vulkaninfo=_output("vulkaninfo", "--summary"),
    )


def uevents(sys_folder: Path) -> str:
    """The `uevent` files of PCI display controllers, with a driver or without, and of other DRM devices.

    AMD's driver tells the memory beside it (`mem_info_vram_total`), which is added as a line.
    """
    found: dict[Path, str] = {}
    pci = sorted((sys_folder / "bus/pci/devices").glob("*"))
    # PCI class 0x03: display controller. Virtual machines and servers have cards without DRM devices.
    devices = [device for device in pci if _text(device / "class").startswith("0x03")]
    devices += [card / "device" for card in sorted((sys_folder / "class/drm").glob("card[0-9]*"))]
    for device in devices:
        if text := _text(device / "uevent"):
            memory = _text(device / "mem_info_vram_total").strip()
            found[device.resolve()] = text + (f"MEM_INFO_VRAM_TOTAL={memory}\n" if memory else "")
    return "\n".join(found.values())


def _nvidia_smi() -> str:
    query = f"--query-gpu={','.join(NVIDIA_COLUMNS)}"
    form = "--format=csv,noheader,nounits"
    return _output("nvidia-smi", query, form) or _output("nvidia-smi", "--query-gpu=name,memory.total", form)


def _text(path: Path) -> str:
    """A file's text; empty where there is none, or it cannot be read without root."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _output(program: str, *arguments: str) -> str:
    """What a program prints; empty where there is none or it fails: a broken driver must not stop us.

    sysctl is believed although it fails: it does when it lacks one of many keys.
    """
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 or program == "sysctl" else ""
