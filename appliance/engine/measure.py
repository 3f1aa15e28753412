"""Measures this machine in a process of its own: `python -m appliance.engine.measure`.

It runs only when nothing else wants the processor, reads memory for a few hundredths of a second and lets a
model read and write a few tokens, then prints one JSON object. The service ends it when a question comes.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from appliance.engine.device import Device
from appliance.engine.probe import probe
from appliance.engine.runtime import cores, runtime
from appliance.errors import HobError
from appliance.hardware.bandwidth import PER_THREAD, read_bandwidth
from appliance.hardware.memory import memory
from builder.compile import Kind, parse_target

# Tokens that the model reads and writes: enough to be timed, and done within a second on a slow machine.
READ, WRITTEN = 128, 33
# Bytes copied on a device with memory of its own.
COPIED = 2**28

# Share of the processors that other programs may use meanwhile: more would show in the figures. These are
# then thrown away and measured again after a pause, in seconds.
SHARED = 0.15
PAUSE = 2.0


def step_back() -> None:
    """Run only when nobody else wants the processor."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def device_bandwidth(kind: Kind, size: int = COPIED, rounds: int = 5) -> float:
    """GB/s that a device moves when it copies within its memory, read and written bytes together.

    Raises:
        DeviceError: there is no such device.
        RuntimeError: it has not the memory.
    """
    device = Device.open(kind)
    ffi = runtime()
    copy = ffi.get_global_func("runtime.TVMTensorCopyFromTo")
    wait = ffi.get_global_func("runtime.Device_StreamSync")
    source, target = device.empty([size], "int8"), device.empty([size], "int8")
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        copy(source, target)
        wait(ffi.device(kind, 0), 0)
        times.append(time.perf_counter() - begun)
    return 2 * size / min(times) / 1e9


class Quiet:
    """Whether other programs let this one measure: their share of all processors since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._before = _busy()

    @property
    def others(self) -> float:
        """The share, 0 to 1; what a hypervisor gives to others counts."""
        passed = (time.perf_counter() - self._begun) * (os.cpu_count() or 1)
        return max(0.0, (_busy() - self._before) / passed)


def _busy() -> float:
    """Seconds of processor time that everything but this process has used since the system started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts a guest's time as its host program's too.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - idle - guests - time.process_time()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what came of it; what cannot be measured is left out, the reason in `errors`."""
    parser = argparse.ArgumentParser(prog="appliance.engine.measure", description="Measure this machine.")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--target", default="cpu", help="what the library was compiled for")
    parser.add_argument("--directory", type=Path, help="a model to measure with")
    parser.add_argument("--library", type=Path, help="the library compiled for it")
    parser.add_argument("--attempts", type=int, default=5, help="at a moment that nobody else uses")
    chosen = parser.parse_args(arguments)
    step_back()
    threads = chosen.threads or cores()
    for last in (False,) * (chosen.attempts - 1) + (True,):
        quiet = Quiet()
        found, errors = attempt(chosen.target, threads, chosen.directory, chosen.library)
        others = quiet.others
        if others < SHARED:
            break
        if last:
            errors.append(f"busy: other programs took {others:.0%} of the processors")
        else:
            time.sleep(PAUSE)
    print(json.dumps({**found, "errors": errors}), flush=True)


def attempt(
    target: str, threads: int, directory: Path | None, library: Path | None
) -> tuple[dict[str, float], list[str]]:
    """Measure once: figures by name, and what could not be measured, "memory: " or "model: " and why."""
    found: dict[str, float] = {}
    errors: list[str] = []
    try:
        kind = parse_target(target).kind
        if kind == "cpu":
            room = memory().available // 8 // threads
            found["bandwidth"] = read_bandwidth(threads, size=min(PER_THREAD, room))
        else:
            found["bandwidth"] = device_bandwidth(kind)
    except Exception as error:  # noqa: BLE001 - drivers raise anything, and the rest can still be measured
        errors.append(f"memory: {told(error)}")
    if directory and library:
        try:
            seen = probe(directory, library, range(1, READ + 1), WRITTEN, threads=threads)
        except Exception as error:  # noqa: BLE001 - as above
            errors.append(f"model: {told(error)}")
        else:
            found["prefill"] = seen.prefill_tokens_per_second
            found["decode"] = seen.decode_tokens_per_second
    return found, errors


def told(error: Exception) -> str:
    """An error in a line, with its hint where it has one."""
    return error.explanation if isinstance(error, HobError) else str(error)


if __name__ == "__main__":
    main()
