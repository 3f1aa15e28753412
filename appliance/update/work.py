"""The one update that is under way: a process of its own, `hob update --json`, followed by the page.

It is a process because it may fetch hundreds of megabytes, with parts that the service is otherwise spared.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance.config import Settings
from appliance.errors import ConflictError
from appliance.jobs import MAX_LINE, Progress, Report, end, environment, reports

log = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-m", "appliance.cli", "update", "--json")


@dataclass(frozen=True)
class Outcome:
    """How the last one ended: `problem` is "" when it is installed; `hint` is the next step."""

    subject: str
    problem: str = ""
    hint: str = ""


class Updating:
    """Runs one update at a time. One per service.

    Attributes:
        subject: what the one under way, or the last one, is about, for people.
        progress: how far the one under way is; None when there is none.
        outcome: how the last one ended; None while one is under way, and before the first.
        restarting: set once the device was asked to restart.
    """

    def __init__(self, settings: Settings, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._environment = environment(settings, os.environ)
        self._task: asyncio.Task[None] | None = None
        self.subject = ""
        self.progress: Progress | None = None
        self.outcome: Outcome | None = None
        self.restarting = False

    @property
    def busy(self) -> bool:
        """Whether one is under way."""
        return self._task is not None and not self._task.done()

    def start(self, subject: str, *arguments: str) -> None:
        """Begin `hob update --json ARGUMENTS`; `subject` is what people see it is about.

        Raises:
            ConflictError: one is under way.
        """
        self.must_be_idle()
        self.subject, self.progress, self.outcome = subject, Progress(), None
        self._task = asyncio.create_task(self._run(arguments))

    def must_be_idle(self) -> None:
        """Refuse what cannot be done while an update is under way."""
        if self.busy:
            raise ConflictError("an update is under way already", hint="Wait until it is done.")

    async def close(self) -> None:
        """End fetching. What is being written into a slot is root's, and goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, arguments: Sequence[str]) -> None:
        try:
            last, status = await self._follow(arguments)
        except OSError as error:
            self.outcome = Outcome(self.subject, f"it cannot be started: {error.strerror}")
        else:
            self.outcome = outcome(self.subject, last, status)
        self.progress = None

    async def _follow(self, arguments: Sequence[str]) -> tuple[Report, int]:
        """Run the process to its end: its last line and its exit status."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
            env=self._environment,
            start_new_session=True,  # signals reach all that it starts
        )
        assert process.stdout is not None
        assert self.progress is not None
        last = Report()
        try:
            async for report in reports(process.stdout):
                last = report
                if report.step:
                    self.progress.update(report, time.monotonic())
            return last, await process.wait()
        finally:
            await end(process)


def outcome(subject: str, last: Report, status: int) -> Outcome:
    """How a process ended, by its last report and exit status."""
    if last.error is not None:
        return Outcome(subject, last.error, last.hint)
    if status != 0:
        return Outcome(
            subject, f"it ended with exit status {status}", "The log (journalctl -u hob) has more."
        )
    return Outcome(subject)
