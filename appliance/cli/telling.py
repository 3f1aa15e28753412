"""What long work on models says: a bar for people, JSON lines for programs.

With `--json` a verb prints one object per line on standard output, and nothing else:

    {"plan": {"name", "source", "form", "quantization", "licence", "fetch", "disk", "stored", "fit", "note"}}
    {"step": "fetching model.safetensors", "fraction": 0.42, "bytes": 123, "total": 456}
    …
    {"model": "NAME"}            or  {"error": "…", "hint": "…", "code": "…"}  and exit status 1

SIGTERM ends the work as Ctrl-C does; the library is then as it was before.
"""

import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from appliance.cli.progress import Bar
from appliance.errors import HobError, StoppedError
from appliance.library.space import size
from builder.errors import BuildError

AT_MOST_EVERY = 0.1
"""Seconds between two reports of the same step."""


class Teller:
    """Says how far the work is: a bar for people, a line for programs."""

    def __init__(self, title: str, as_json: bool) -> None:
        self._bar = None if as_json else Bar(title)
        self._step, self._told, self._shown = "", 0.0, 0.0

    def __call__(self, step: str, fraction: float, done: int | None = None, total: int | None = None) -> None:
        """Tell, but not too often. The fraction never goes back."""
        now = time.monotonic()
        self._shown = max(self._shown, min(fraction, 1.0))
        if step == self._step and now - self._told < AT_MOST_EVERY and fraction < 1:
            return
        self._step, self._told = step, now
        if self._bar is not None:
            self._bar(f"{step} ({size(done)} of {size(total)})" if done and total else step, self._shown)
            return
        line: dict[str, Any] = {"step": step, "fraction": round(self._shown, 4)}
        if done is not None:
            line |= {"bytes": done, "total": total}
        say(line)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def spoken(as_json: bool) -> Iterator[None]:
    """Errors as a last JSON line, where that is wanted; SIGTERM ends the work as Ctrl-C does."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2"):  # they log addresses, signatures included
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            yield
        except KeyboardInterrupt as error:
            raise StoppedError(
                "stopped", hint="What was fetched is kept for a week: the same command goes on from there."
            ) from error
    except (HobError, BuildError) as error:
        if not as_json:
            raise
        code = error.code if isinstance(error, HobError) else "build_failed"
        say({"error": str(error), "hint": error.hint, "code": code})
        sys.exit(1)


def say(line: dict[str, Any]) -> None:
    """One line for a program."""
    print(json.dumps(line), flush=True)
