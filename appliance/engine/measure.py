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

from appliance.engine.probe import probe
from appliance.engine.runtime import cores, runtime
from appliance.errors import HobError
from appliance.hardware.bandwidth import PER_THREAD, read_bandwidth
from appliance.hardware.memory import memory

# Tokens that the model reads and writes: enough to be timed, and done within a second on a slow machine.
READ, WRITTEN = 128, 33
# Bytes copied on a device with memory of its own.
COPIED = 2**28


def step_back() -> None:
    """Run only when nobody else wants the processor."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def device_bandwidth(kind: str, size: int = COPIED, rounds: int = 5) -> float:
    """GB/s that a device moves when it copies within its memory, read and written bytes together.

    Raises:
        RuntimeError, ValueError: TVM's runtime has no such device, or it has not the memory.
    """
    ffi = runtime()
    device = ffi.device(kind, 0)
    allocate = ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    copy = ffi.get_global_func("runtime.TVMTensorCopyFromTo")
    wait = ffi.get_global_func("runtime.Device_StreamSync")
    source, target = (allocate(ffi.Shape([size]), ffi.dtype("int8"), device, None) for _ in range(2))
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        copy(source, target)
        wait(device, 0)
        times.append(time.perf_counter() - begun)
    return 2 * size / min(times) / 1e9


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what came of it; what cannot be measured is left out, the reason in `errors`."""
    parser = argparse.ArgumentParser(prog="appliance.engine.measure", description="Measure this machine.")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument("--target", default="cpu", help="what the library was compiled for")
    parser.add_argument("--directory", type=Path, help="a model to measure with")
    parser.add_argument("--library", type=Path, help="the library compiled for it")
    chosen = parser.parse_args(arguments)
    step_back()
    threads = chosen.threads or cores()
    kind = chosen.target.partition("-")[0]
    found: dict[str, object] = {}
    errors: list[str] = []
    try:
        if kind == "cpu":
            room = memory().available // 8 // threads
            found["bandwidth"] = read_bandwidth(threads, size=min(PER_THREAD, room))
        else:
            found["bandwidth"] = device_bandwidth(kind)
    except Exception as error:  # noqa: BLE001 - drivers raise anything, and the rest can still be measured
        errors.append(f"memory: {error}")
    if chosen.directory and chosen.library:
        try:
            seen = probe(chosen.directory, chosen.library, range(1, READ + 1), WRITTEN, threads=threads)
        except HobError as error:
            errors.append(f"model: {error}")
        else:
            found["prefill"] = seen.prefill_tokens_per_second
            found["decode"] = seen.decode_tokens_per_second
    print(json.dumps({**found, "errors": errors}), flush=True)


if __name__ == "__main__":
    main()
