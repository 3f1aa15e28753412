"""The way of an update into the other slot; runs as root, on a device that was flashed.

Everything that can be wrong with a file is found before the other slot is touched. From then on a power cut
costs that slot's content, never what runs: the boot loader is told last, and only for one start.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from appliance.errors import AdminError, ConflictError, UpdateError
from appliance.update import bundle, record, slots
from appliance.update.bundle import Bundle
from appliance.update.record import Attempt, Record
from appliance.update.slots import Slots
from appliance.update.verdict import judge

CONFIG: Final = Path("/etc/rauc/system.conf")
BACKEND: Final = Path("/usr/lib/hob/slots")

QUICK: Final = 60.0
"""Seconds for a question to RAUC."""

SLOW: Final = 3600.0
"""Seconds for an installation: a card that writes 1 MB/s takes minutes."""

CHECKED: Final = 0.3
"""Share of the whole at which the file is checked and the writing begins."""

Tell = Callable[[str, float | None], None]


def present() -> bool:
    """Whether this is a device with slots."""
    return CONFIG.is_file()


async def survey() -> Slots:
    """What runs here and from where.

    Raises:
        UpdateError: this is no device with two slots, or it does not tell.
    """
    status, _ = await _output("rauc", "status", "--output-format=json", seconds=QUICK)
    default, _ = await _output(str(BACKEND), "get-default", seconds=QUICK)
    try:
        image = slots.IMAGE.read_text(encoding="utf-8")
    except OSError as error:
        raise UpdateError(f"{slots.IMAGE}: {error.strerror}") from error
    return slots.parse(status, default.strip(), image, slots.room())


def history(here: Slots) -> Record:
    """What was tried and how it ended, as of now."""
    return record.settle(record.read(), here.current, here.version, record.boot_id())


async def inspect(path: Path) -> Bundle:
    """What is in a file. Its signature is checked, its content is not.

    Raises:
        UpdateError: it is no update, or not signed by somebody whom this device trusts.
    """
    try:
        text, _ = await _output("rauc", "info", "--output-format=json-2", str(path), seconds=QUICK)
    except AdminError as error:
        raise bundle.refusal(error.message, path.name) from error
    return bundle.parse(text)


async def install(path: Path, tell: Tell, *, force: bool = False) -> str:
    """Check a file and write it into the other slot, which the next start tries. The version.

    Args:
        tell: hears what is done, and the share of all that is done.
        force: take a version that is not newer, too.

    Raises:
        UpdateError: it is refused, or could not be written.
        ConflictError: another update is under way, or the system that runs is on trial.
    """
    tell("checking the signature", 0.0)
    here = await survey()
    found = await inspect(path)
    judge(found, here, force=force)

    def checked(share: float) -> None:
        loop.call_soon_threadsafe(tell, "comparing every block with the signature", share * CHECKED)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(bundle.check_content, path, found.bundle, checked)
    attempt = Attempt(here.other, found.version, here.version, "writing", boot=record.boot_id())
    await _keep(record.turn(record.begin(history(here), attempt), "writing"))
    try:
        await _write(path, tell, force=force)
    except (UpdateError, ConflictError) as error:
        await _keep(record.turn(record.read(), "failed", error.message))
        raise
    await _keep(record.turn(record.read(), "waiting"))
    return found.version


async def go_back() -> str:
    """Have the other slot started next, once, to be tried as an update is; the version in it.

    Raises:
        UpdateError: it never answered, so there is nothing to go back to.
        ConflictError: the system that runs is on trial: it goes back by itself, with the next start.
    """
    here = await survey()
    if here.on_trial:
        raise ConflictError(f"version {here.version} is on trial", hint="A restart leads back from it.")
    if here.other not in here.good:
        raise UpdateError(
            "there is no earlier version to go back to",
            hint="The other slot is empty, or what is in it never ran here.",
        )
    kept = history(here)
    version = kept.versions.get(here.other, "")
    attempt = Attempt(here.other, version, here.version, "waiting", boot=record.boot_id())
    await _output("rauc", "status", "mark-active", "other", seconds=QUICK)
    await _keep(record.turn(Record(attempt, kept.versions), "waiting"))
    return version


async def accept() -> None:
    """What runs has answered: it is what boots from now on."""
    here = await survey()
    await _output("rauc", "status", "mark-good", "booted", seconds=QUICK)
    kept = history(here)
    if kept.attempt is not None and kept.attempt.slot == here.current and kept.attempt.state == "waiting":
        kept = record.turn(kept, "good")
    await _keep(kept)


async def give_up(reason: str) -> None:
    """What runs does not answer, for this reason, which is told once the version before runs again."""
    kept = record.read()
    await _keep(record.turn(kept, kept.attempt.state if kept.attempt else "waiting", reason))


async def _write(path: Path, tell: Tell, *, force: bool) -> None:
    """Have RAUC write the file, following what it says."""
    options = ["--ignore-version-limit"] if force else []
    last = ""

    def said(line: str) -> None:
        nonlocal last
        if found := re.match(r"\s*(\d{1,3})% (.+)", line):
            tell(found[2], CHECKED + (1 - CHECKED) * min(int(found[1]), 100) / 100)
        elif found := re.match(r"\s*LastError: (.+)", line):
            last = found[1]

    try:
        await _output("rauc", "install", *options, str(path), seconds=SLOW, said=said)
    except AdminError as error:
        complaint = last or error.message
        if "already processing" in complaint.lower():
            raise ConflictError("another update is being installed", hint="Wait until it is done.") from error
        raise UpdateError(
            f"it could not be written: {complaint}",
            hint="What runs is untouched. Try again; if it stays so, the disk may be failing.",
        ) from error


async def _keep(kept: Record) -> None:
    await asyncio.to_thread(record.write, kept)


async def _output(
    *command: str, seconds: float, said: Callable[[str], None] = lambda line: None
) -> tuple[str, str]:
    """What a program prints, and its complaints; `said` hears each line of both as it comes.

    Raises:
        AdminError: it is missing, failed, or took too long; the message is its last complaint.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise AdminError(f"{command[0]} cannot be run: {error.strerror}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(seconds):
            out, complaints = await asyncio.gather(_lines(process.stdout, said), _lines(process.stderr, said))
            await process.wait()
    except TimeoutError as error:
        raise AdminError(f"{command[0]} took longer than {seconds:.0f} seconds") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        told = (complaints or out).strip().splitlines()
        raise AdminError(told[-1] if told else f"{command[0]} failed with status {process.returncode}")
    return out, complaints


async def _lines(stream: asyncio.StreamReader, said: Callable[[str], None]) -> str:
    text = []
    async for raw in stream:
        text.append(raw.decode(errors="replace"))
        said(text[-1].rstrip())
    return "".join(text)
