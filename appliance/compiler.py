"""Runs the compiler as a process of its own, so that its 300 MB never enter the service."""

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.errors import DeviceError, ModelLoadError

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Called with the step's name and the fraction done, 0 to 1."""


async def compile_library(
    directory: Path, cache: Path, kernels: str, progress: Progress | None, target: str = "cpu"
) -> Path:
    """Run the compiler on a model and return its library. Finds a valid one in `cache` without compiling.

    Raises:
        ModelLoadError: it failed; the message is the compiler's. `DeviceError` for targets but the processor.
    """
    failed = ModelLoadError if target == "cpu" else DeviceError
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "builder.compile", str(directory), str(cache)),
        *("--kernels", kernels, "--target", target),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    complaints = asyncio.create_task(process.stderr.read())
    report: dict[str, Any] = {}
    try:
        async for line in process.stdout:
            report = json.loads(line)
            if progress is not None and "step" in report:
                progress(report["step"], report["fraction"])
        status = await process.wait()
        said = (await complaints).decode(errors="replace").strip()
    finally:
        # A caller that gives up takes the compiler with it.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        complaints.cancel()
    if "error" in report:
        who = "it" if target != "cpu" else directory.name  # a device's fault is told with the model's name
        raise failed(f"{who} does not compile: {report['error']}", hint=report["hint"])
    if status != 0 or "library" not in report:
        log.error("the compiler failed on %s:\n%s", directory, said)
        raise failed(
            f"the compiler failed on {directory} with exit status {status}",
            hint="Its messages are in the log.",
        )
    return Path(report["library"])
