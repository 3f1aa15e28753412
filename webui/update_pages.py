"""What the template of the updates page is given; see `pages`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from webui.pages import Fact, Page, Sidebar


@dataclass(frozen=True)
class Stick:
    """An update file on a stick: what is posted to install it, and its size for people."""

    path: str
    size: str


@dataclass(frozen=True)
class Work:
    """What is under way: a title, what is done just now, and how much of it, 0 to 100."""

    title: str
    status: str
    percent: int


@dataclass(frozen=True)
class UpdatesPage(Page):
    """Updating a device that was flashed.

    Attributes:
        facts: what runs, and what the other slot holds; empty where nothing can be updated.
        story: how the last update went; "" where there was none.
        story_bad: whether it went wrong.
        waiting: whether a restart would try something new.
        back: the version that can be gone back to; "" for none.
        work: what is under way.
        restarting: the device is about to restart.
        trying: the version that runs on trial, until it has answered a question; "" for none.
        sticks: update files on sticks.
        url: address that is asked for updates; "" for none.
        installs: whether what is found there is installed by itself.
        note: what a look at the address found.
        room: free room for an upload, for people.
        problem, hint: why the last wish was not granted, or why nothing can be updated here.
    """

    template: ClassVar[str] = "updates.html"
    sidebar: Sidebar
    facts: Sequence[Fact]
    story: str
    story_bad: bool
    waiting: bool
    back: str
    work: Work | None
    restarting: bool
    trying: str
    sticks: Sequence[Stick]
    url: str
    installs: bool
    note: str
    room: str
    problem: str
    hint: str
