"""Graphics processors out of what drivers' tools and sysfs print; several accounts of one become one."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from appliance.domain import Gpu

# PCI and Khronos vendor numbers.
VENDORS: Mapping[int, str] = {
    0x10DE: "nvidia",
    0x1002: "amd",
    0x8086: "intel",
    0x106B: "apple",
    0x14E4: "broadcom",
    0x13B5: "arm",
    0x5143: "qualcomm",
    0x10005: "software",  # Mesa's llvmpipe and lavapipe
    0x1AE0: "software",  # SwiftShader
}
# Linux's drivers of graphics processors that are no PCI devices. Others drive displays only.
DRIVERS: Mapping[str, tuple[str, str]] = {
    "v3d": ("broadcom", "VideoCore"),
    "vc4_v3d": ("broadcom", "VideoCore IV"),
    "panfrost": ("arm", "Mali"),
    "panthor": ("arm", "Mali"),
    "lima": ("arm", "Mali"),
    "msm_dpu": ("qualcomm", "Adreno"),
    "adreno": ("qualcomm", "Adreno"),
    "asahi": ("apple", "Apple GPU"),
}
# Tegra processors by their device tree name: GPU and compute capability (NVIDIA's list of CUDA GPUs).
TEGRA: Mapping[str, tuple[str, str]] = {
    "nvidia,tegra210": ("NVIDIA Tegra X1", "5.3"),
    "nvidia,tegra186": ("NVIDIA Tegra X2", "6.2"),
    "nvidia,tegra194": ("NVIDIA Xavier", "7.2"),
    "nvidia,tegra234": ("NVIDIA Orin", "8.7"),
    "nvidia,tegra264": ("NVIDIA Thor", "11.0"),
}
NAMES: Mapping[str, str] = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel", "apple": "Apple"}

Kind = Literal["discrete", "integrated", "software", "unknown"]
KINDS: Mapping[str, Kind] = {
    "PHYSICAL_DEVICE_TYPE_DISCRETE_GPU": "discrete",
    "PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU": "integrated",
    "PHYSICAL_DEVICE_TYPE_CPU": "software",
}
ORDER: tuple[Kind, ...] = ("discrete", "integrated", "unknown", "software")


def parse_nvidia_smi(text: str) -> Iterator[Gpu]:
    """Rows of name, memory in MiB, and where the driver knows them compute capability and PCI id.

    A GPU that shares the machine's memory, as on Jetson boards, has no memory of its own to tell.
    """
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) < 2:
            continue  # a complaint, not a row
        memory = int(row[1]) * 2**20 if row[1].strip().isdigit() else None
        capability = row[2].strip() if len(row) > 2 else ""
        yield Gpu(
            name=row[0].strip(),
            vendor="nvidia",
            kind="discrete" if memory else "integrated",
            memory=memory,
            compute_capability=capability if re.fullmatch(r"\d+\.\d", capability) else "",
            driver="nvidia",
        )


def parse_vulkaninfo(text: str) -> Iterator[Gpu]:
    """Devices of `vulkaninfo --summary`, software renderers included."""
    for block in re.split(r"^GPU\d+:\s*$", text, flags=re.MULTILINE)[1:]:
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", block, flags=re.MULTILINE))
        if name := fields.get("deviceName"):
            # Older loaders print "4194459 (1.0.155)".
            version = re.search(r"\d+\.\d+\.\d+", fields.get("apiVersion", ""))
            yield Gpu(
                name=name,
                vendor=VENDORS.get(_number(fields.get("vendorID", "")), ""),
                kind=KINDS.get(fields.get("deviceType", ""), "unknown"),
                vulkan=version.group() if version else "",
                driver=fields.get("driverName", ""),
            )


def parse_uevents(text: str) -> Iterator[Gpu]:
    """Devices of sysfs: PCI cards by vendor and number, others by the driver that serves them."""
    for block in text.split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        driver = fields.get("DRIVER", "")
        if identity := fields.get("PCI_ID"):
            vendor = VENDORS.get(_number(f"0x{identity.partition(':')[0]}"), "")
            memory = fields.get("MEM_INFO_VRAM_TOTAL", "")
            if vendor in NAMES:  # else a virtual machine's or a server's console
                yield Gpu(
                    name=f"{NAMES[vendor]} graphics {identity.lower()}",
                    vendor=vendor,
                    memory=int(memory) if memory.isdigit() else None,
                    driver=driver,
                )
        elif driver in DRIVERS:
            vendor, name = DRIVERS[driver]
            compatible = fields.get("OF_COMPATIBLE_0", "")
            yield Gpu(
                name=f"{name} ({compatible})" if compatible else name,
                vendor=vendor,
                kind="integrated",
                driver=driver,
            )


def parse_tegra(compatible: str) -> Iterator[Gpu]:
    """The GPU of an NVIDIA system on a chip, by its device tree: older ones lack nvidia-smi."""
    for name in compatible.split("\0"):
        if name in TEGRA:
            gpu, capability = TEGRA[name]
            yield Gpu(name=gpu, vendor="nvidia", kind="integrated", compute_capability=capability)
            return


def parse_system_profiler(text: str) -> Iterator[Gpu]:
    """GPUs of a Mac. Apple's own share the machine's memory."""
    try:
        found: list[dict[str, Any]] = json.loads(text)["SPDisplaysDataType"]
    except (ValueError, KeyError, TypeError):
        return
    for entry in found:
        name = str(entry.get("sppci_model") or entry.get("_name") or "")
        # Older systems say "spdisplays_metalfamily", newer ones "spdisplays_mtlgpufamilysupport".
        metal = any(key.startswith(("spdisplays_metal", "spdisplays_mtl")) for key in entry)
        if name:
            apple = name.startswith("Apple")
            yield Gpu(
                name=name,
                vendor="apple" if apple else "",
                kind="integrated" if apple else "unknown",
                metal=metal,
                driver="Metal" if metal else "",
            )


def merge(*accounts: Iterable[Gpu]) -> tuple[Gpu, ...]:
    """One list out of several, in each of which a GPU is named at most once; earlier accounts weigh more.

    Two descriptions are of one GPU when they have the same vendor and, where a vendor has several, the same
    name or else the same place in the order. GPUs with memory of their own come first, imitations last.
    """
    merged: list[Gpu] = []
    for account in accounts:
        free = list(merged)
        for gpu in account:
            same = [known for known in free if known.vendor == gpu.vendor != ""]
            named = [known for known in same if known.name == gpu.name]
            if matches := named or same:
                free.remove(matches[0])
                merged[merged.index(matches[0])] = _complete(matches[0], gpu)
            else:
                merged.append(gpu)
    return tuple(sorted(merged, key=lambda gpu: (ORDER.index(gpu.kind), -(gpu.memory or 0))))


def _complete(known: Gpu, other: Gpu) -> Gpu:
    """`known` with what it lacks taken from `other`."""
    missing = {
        name: value
        for name, value in other
        if getattr(known, name) in ("", None, False, "unknown") and value not in ("", None, False, "unknown")
    }
    return known.model_copy(update=missing)


def _number(text: str) -> int:
    """A hexadecimal number as Vulkan and PCI print them; -1 for anything else."""
    try:
        return int(text, 16)
    except ValueError:
        return -1
