"""Which of a machine's devices compute: the order, who is left out and why, and what to do when one fails."""

from collections.abc import Sequence
from typing import Literal, get_args

from appliance.domain import Frozen, Gpu, Hardware

Kind = Literal["cuda", "metal", "vulkan", "cpu"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The order in which devices are tried when the settings do not say otherwise."""

# Drivers without this are of GPUs from before 2016, which a present CPU outruns.
VULKAN = (1, 3)


class Candidate(Frozen):
    """A device and whether models are to be tried on it.

    Attributes:
        kind: "cuda", "metal", "vulkan" or "cpu".
        target: what libraries are compiled for, as the compiler names it ("cuda-sm_87", "cpu").
        name: the GPU's or the processor's; empty where there is no such device.
        usable: whether models are tried on it.
        reason: in words, why or why not.
        hint: what would make it usable; empty where nothing would, or nothing need.
    """

    kind: Kind
    target: str
    name: str
    usable: bool
    reason: str
    hint: str = ""


def candidates(machine: Hardware, wanted: Sequence[str] = ()) -> tuple[Candidate, ...]:
    """Every kind of device with a verdict, those to be tried first, in their order.

    Args:
        wanted: the setting `devices`, best first. Empty means what is known to be
            fastest. A GPU that is not known to be faster than the CPU is tried only when it is wanted.
    """
    listed = [_judge(name, machine, forced=bool(wanted)) for name in (wanted or KINDS)]
    kinds = {candidate.kind for candidate in listed}
    switched_off = [
        Candidate(
            kind=kind,
            target=judged.target,
            name=judged.name,
            usable=False,
            reason=f"left out by the setting devices ({', '.join(wanted)})",
        )
        for kind in KINDS
        if kind not in kinds and (judged := _judge(kind, machine, forced=False))
    ]
    return (*sorted(listed, key=lambda one: not one.usable), *switched_off)


def _judge(name: str, machine: Hardware, *, forced: bool) -> Candidate:
    """The verdict on one kind of device, or on a target that somebody named outright."""
    match name:
        case "cpu":
            return Candidate(
                kind="cpu", target="cpu", name=machine.cpu, usable=True, reason="runs every model"
            )
        case "cuda":
            return _cuda(machine.gpus)
        case "metal":
            return _metal(machine.gpus)
        case "vulkan":
            return _vulkan(machine.gpus, forced=forced)
        case _:
            return Candidate(
                kind="cuda", target=name, name=name, usable=True, reason="named in the setting `devices`"
            )


def _cuda(gpus: Sequence[Gpu]) -> Candidate:
    nvidia = [gpu for gpu in gpus if gpu.vendor == "nvidia"]
    able = [gpu for gpu in nvidia if gpu.compute_capability]
    if able:
        capability = able[0].compute_capability
        return Candidate(
            kind="cuda",
            target=f"cuda-sm_{capability.replace('.', '')}",
            name=able[0].name,
            usable=True,
            reason=f"NVIDIA GPU of compute capability {capability}",
        )
    if not nvidia:
        return Candidate(kind="cuda", target="cuda", name="", usable=False, reason="there is no NVIDIA GPU")
    driver = nvidia[0].driver
    return Candidate(
        kind="cuda",
        target="cuda",
        name=nvidia[0].name,
        usable=False,
        reason="its driver, nouveau, has no CUDA"
        if driver == "nouveau"
        else "NVIDIA's driver does not answer",
        hint="Install NVIDIA's driver, with nvidia-smi, and restart.",
    )


def _metal(gpus: Sequence[Gpu]) -> Candidate:
    for gpu in gpus:
        if gpu.metal and gpu.vendor == "apple":
            return Candidate(
                kind="metal", target="metal", name=gpu.name, usable=True, reason="Apple's GPU, with Metal"
            )
    reason = "Hob uses Metal on Apple's own GPUs only" if any(gpu.metal for gpu in gpus) else "this is no Mac"
    return Candidate(kind="metal", target="metal", name="", usable=False, reason=reason)


def _vulkan(gpus: Sequence[Gpu], *, forced: bool) -> Candidate:
    """The first GPU that may be used, or the reason why the best one may not."""
    verdicts = [_vulkan_gpu(gpu, forced=forced) for gpu in gpus]
    usable = [verdict for verdict in verdicts if verdict.usable]
    nothing = Candidate(kind="vulkan", target="vulkan", name="", usable=False, reason="there is no GPU")
    return (usable or verdicts or [nothing])[0]


def _vulkan_gpu(gpu: Gpu, *, forced: bool) -> Candidate:
    usable, hint = False, ""
    version = tuple(int(part) for part in gpu.vulkan.split(".")[:2]) if gpu.vulkan else (0, 0)
    if gpu.kind == "software":
        reason = "it is not a GPU but a program that imitates one on the CPU"
    elif gpu.vendor == "broadcom":
        reason = "the Raspberry Pi's GPU is slower than its CPU"
    elif gpu.metal:
        reason = "Metal is the way to it"
    elif not gpu.vulkan:
        reason = "no driver offers Vulkan for it, or vulkaninfo is not there to ask"
        hint = "Install the GPU's Vulkan driver and vulkan-tools."
    elif forced:
        usable, reason = True, "wanted by the setting `devices`"
    elif version < VULKAN:
        reason = f"its driver has Vulkan {gpu.vulkan}, {VULKAN[0]}.{VULKAN[1]} is needed"
    elif gpu.kind == "discrete":
        usable, reason = True, "a graphics card with memory of its own"
    elif gpu.vendor == "nvidia":
        # An Orin's GPU reads the shared memory at three times the speed of its processor.
        usable, reason = True, "an integrated GPU known to be faster than the CPU"
    else:
        reason = "it shares the CPU's memory and is not known to be faster"
        hint = 'To try it: devices = ["vulkan", "cpu"] in the settings.'
    return Candidate(kind="vulkan", target="vulkan", name=gpu.name, usable=usable, reason=reason, hint=hint)
