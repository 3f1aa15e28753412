"""How much memory there is to use, inside containers too, and whether a model fits into it.

Imported by the engine process: nothing heavy here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

# Memory the engine process takes beside weights and KV cache, and what the rest of the service needs.
ENGINE_OVERHEAD = 120 * 2**20
SERVICE_OVERHEAD = 160 * 2**20

# Version 1 of the control groups writes a limit of "none" as the largest page-aligned number.
UNLIMITED = 2**62


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory.

    Attributes:
        total: of this machine, or of the container or unit that this process runs in, where that is less.
        available: free for use now, caches that give way included.
        limited: whether a control group, not the machine, sets these bounds.
    """

    total: int
    available: int
    limited: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """A control group's memory in bytes: what it may use, what it uses, what of that would give way."""

    limit: int
    used: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits: bytes needed, free now, and there at all.

    `verdict`: "fits"; "not now", when other programs hold what it needs; "never", when there is not so much.
    """

    needed: int
    available: int
    total: int

    @property
    def verdict(self) -> Literal["fits", "not now", "never"]:
        """In one word."""
        if self.needed <= self.available:
            return "fits"
        return "not now" if self.needed <= self.total else "never"

    @property
    def fits(self) -> bool:
        """Whether it can be loaded now."""
        return self.verdict == "fits"


def memory() -> Memory:
    """What this process may use now."""
    machine = psutil.virtual_memory()
    return within(machine.total, machine.available, groups())


def within(total: int, available: int, limits: Iterator[Group]) -> Memory:
    """The machine's memory, cut down to what every enclosing control group allows."""
    limited = False
    for group in limits:
        if group.limit < total:
            limited, total = True, group.limit
        left = max(0, group.limit - group.used + group.reclaimable)
        if left < available:
            limited, available = True, left
    return Memory(total, min(available, total), limited)


def groups(root: Path = Path("/")) -> Iterator[Group]:
    """The control groups with a memory limit that hold this process, innermost first (Linux; else none).

    Both versions of the interface: cgroup-v2.rst and cgroup-v1/memory.rst of the kernel's documentation.
    A process in a container sees its own group as the root of the hierarchy, or, with the host's view of
    it, a path that is not there: then the root counts.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        folder = mount.joinpath(*Path(path).parts[1:])
        for place in (folder, *folder.parents):
            if place.is_relative_to(mount) and (group := _group(place, *names)):
                yield group


def _group(folder: Path, limit: str, usage: str, prefix: str) -> Group | None:
    """One control group, or None where it sets no limit or cannot be read."""
    try:
        bound = (folder / limit).read_text().strip()
        if bound == "max" or int(bound) >= UNLIMITED:
            return None
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Files read before stay cached in the group's account, and go when memory is asked for.
    cached = sum(int(stat.get(f"{prefix}{name}_file", 0)) for name in ("active", "inactive"))
    return Group(int(bound), used, cached)


def kv_bytes(config: Mapping[str, Any], context: int) -> int:
    """Bytes of float32 KV cache for `context` tokens of a model with this `mlc-chat-config.json`."""
    model = config["model_config"]
    heads = model.get("num_key_value_heads") or model["num_attention_heads"]
    head_dim = model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"]
    return 2 * 4 * int(model["num_hidden_layers"] * heads * head_dim) * context


def fits(weights: int, kv: int, available: int, total: int | None = None) -> Fit:
    """Weigh a model with so many bytes of weights and of KV cache (`kv_bytes`) against memory.

    Args:
        available: bytes free now (`memory().available`); add what the model that would give way holds.
        total: bytes there are at all (`memory().total`); None means no more than `available`.
    """
    needed = weights + kv + ENGINE_OVERHEAD + SERVICE_OVERHEAD
    return Fit(needed, available, available if total is None else total)


def largest_model(available: int) -> float:
    """Billions of 4-bit weights that fit into `available` bytes with 2,048 tokens of context.

    q4f16_1 takes 4.5 bits a weight (4 plus a float16 scale for 32). The KV cache is reckoned as the one of
    Llama-3.2-1B scaled by size: 64 KiB a token and billion weights.
    """
    room = available - ENGINE_OVERHEAD - SERVICE_OVERHEAD
    per_billion = 1e9 * 4.5 / 8 + 2048 * 64 * 2**10
    return max(0.0, room / per_billion)
