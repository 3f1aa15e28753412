"""Programs of the operating system that the administration runs: a fixed name and a list of arguments."""

import asyncio
import contextlib

from appliance.errors import AdminError

SECONDS = 30.0
"""What a program may take unless the caller says otherwise."""


async def run(*command: str, text: str = "", seconds: float = SECONDS, hint: str = "") -> str:
    """Run a program with `text` as its input; its standard output. There is no shell in between.

    Raises:
        AdminError: it is missing, failed, or took longer than `seconds`; has the last line it wrote but for
            hints to who sits at a shell.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise AdminError(f"{command[0]} cannot be run: {error.strerror}", hint=hint) from error
    try:
        async with asyncio.timeout(seconds):
            out, complaints = await process.communicate(text.encode())
    except TimeoutError as error:
        raise AdminError(f"{command[0]} took longer than {seconds:.0f} seconds", hint=hint) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        said = complaints.decode(errors="replace").strip().splitlines()
        lines = [line for line in said if not line.startswith("Hint:")]
        raise AdminError(
            f"{command[0]} failed: {lines[-1] if lines else f'status {process.returncode}'}", hint=hint
        )
    return out.decode(errors="replace")
