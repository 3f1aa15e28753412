"""Says how far an image is: a line per finished stage and a bar for people, JSON for programs."""

import time

from rich import console, progress

from appliance.cli.telling import say

AT_MOST_EVERY = 0.1
"""Seconds between two reports of the same stage."""


class Stages:
    """Is told stage, text and share done; shows the stage under way, and how long each took.

    Args:
        as_json: print lines for programs on standard output instead.
    """

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._console = console.Console(stderr=True, highlight=False, markup=False)
        self._bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.fields[stage]:<9} {task.description}", markup=False),
            progress.BarColumn(bar_width=20),
            progress.TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=as_json or not self._console.is_terminal,
        )
        self._task: progress.TaskID | None = None
        self._stage, self._first, self._since, self._told = "", "", 0.0, 0.0

    def __call__(self, stage: str, text: str, fraction: float | None) -> None:
        """Tell, but not too often."""
        now = time.monotonic()
        if stage == self._stage and now - self._told < AT_MOST_EVERY:
            return
        if self._json:
            say({"stage": stage, "text": text, "fraction": None if fraction is None else round(fraction, 4)})
        elif stage != self._stage:
            self.finish()
            self._first, self._since = text, now
            self._bar.start()
            self._task = self._bar.add_task(text, total=None, stage=stage)
        elif self._task is not None:
            total = None if fraction is None else 1.0
            self._bar.update(self._task, description=text, completed=fraction or 0.0, total=total)
        self._stage, self._told = stage, now

    def finish(self) -> None:
        """The stage under way is done: say how long it took. May be called again."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
            self._console.print(f"{self._stage:<9} {self._first} ({time.monotonic() - self._since:.1f} s)")

    def stop(self) -> None:
        """Take the bar away, whatever came of the stage under way. May be called again."""
        self._bar.stop()
