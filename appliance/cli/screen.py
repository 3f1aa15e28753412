"""The screen of a device of its own: where Hob is, and the code for the first visit.

The service writes a text to the file that HOB_SCREEN names; hob-screen.service draws it.
"""

import asyncio
import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import segno

LOOK_SECONDS = 5.0
"""Between two looks at the addresses: a cable that has just been plugged in should show soon."""

MARGIN = "   "


def text(hosts: Sequence[str], port: int, code: str) -> str:
    """What the screen shows.

    Args:
        hosts: names and addresses by which Hob is reached, the name first; none without a network.
        code: the code for the first visit; "" where there is an owner.
    """
    if len(hosts) < 2:  # a name alone reaches nobody
        lines = [
            "Hob is running, and has no network.",
            "",
            "Plug in a cable, or use the Wi-Fi that Hob opens.",
        ]
    else:
        end = "" if port == 80 else f":{port}"
        first, *others = [f"http://{host}{end}" for host in hosts]
        lines = [f"Hob is at   {first}", *(f"            {other}" for other in others)]
        if code:
            lines += ["", "The first visitor sets the owner's password, with this code:", "", f"    {code}"]
        picture = io.StringIO()
        segno.make(others[0]).terminal(picture, compact=True)  # not every phone resolves .local names
        lines += ["", *picture.getvalue().splitlines()]
    return "".join(f"{MARGIN}{line}".rstrip() + "\n" for line in lines)


async def keep(file: Path, compose: Callable[[], str]) -> None:
    """Keep `file` at what `compose` says, until cancelled; it is written when that has changed, whole."""
    shown = ""
    while True:
        if (now := compose()) != shown:
            with contextlib.suppress(OSError):  # a screen less is no reason to end
                new = file.with_name(f".{file.name}.new")
                new.write_text(now, encoding="utf-8")
                new.replace(file)
                shown = now
        await asyncio.sleep(LOOK_SECONDS)
