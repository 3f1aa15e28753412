"""What the templates of the models pages are given; see `pages`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from webui.pages import Page, Sidebar


@dataclass(frozen=True)
class JobRow:
    """A piece of long work on the models page.

    Attributes:
        title: what is done: "Adding owner/name".
        state: as stored; "waiting" and "running" are open.
        status: the state in words, with what is done just now.
        percent: of all the work, 0 to 100; None while it does not run.
        problem, hint: why it failed, and the next step.
        model: name of the model that came of it; "" while there is none.
    """

    id: int
    title: str
    state: str
    status: str
    percent: int | None
    problem: str
    hint: str
    model: str

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")


@dataclass(frozen=True)
class LibraryRow:
    """An installed model on the models page.

    Attributes:
        facts: size, format and context in one line.
        origin: where it came from, with licence and version; empty when unknown.
        marks: "default", "in memory", "pinned", "built in": what is true of it.
        fit: whether it fits this machine's memory, where it does not.
    """

    name: str
    facts: str
    origin: str
    note: str
    problem: str
    fit: str
    marks: Sequence[str]
    default: bool
    pinned: bool
    builtin: bool


@dataclass(frozen=True)
class KnownRow:
    """A model of the catalogue.

    Attributes:
        source: what is posted to add it.
        facts: download, memory and licence in one line.
        verdict: whether it fits, in words; `fits` in one.
        installed: it is here already.
    """

    name: str
    source: str
    good_for: str
    languages: str
    facts: str
    verdict: str
    fits: bool
    installed: bool


@dataclass(frozen=True)
class PlanCard:
    """What adding a source means, before it is done; `fits` tells whether it may go ahead without asking."""

    source: str
    name: str
    facts: Sequence[tuple[str, str]]
    verdict: str
    fits: bool


@dataclass(frozen=True)
class Place:
    """Something on this machine or this network that can be named as a source, and what it is."""

    source: str
    detail: str


@dataclass(frozen=True)
class ModelsPage(Page):
    """The library of models.

    Attributes:
        jobs: long work, newest first.
        busy: whether any of it is open, so that the page looks again.
        sticks: models on sticks; `folders` are the sticks themselves, where models can be written.
        hobs: other Hobs, once they were looked for; None before.
        plan: what was asked about, if anything.
        source: what stands in the field.
        problem, hint: why the last wish was not granted.
        space: room on the disk, for people.
    """

    template: ClassVar[str] = "models.html"
    sidebar: Sidebar
    models: Sequence[LibraryRow]
    jobs: Sequence[JobRow]
    busy: bool
    catalogue: Sequence[KnownRow]
    sticks: Sequence[Place]
    folders: Sequence[str]
    hobs: Sequence[Place] | None
    plan: PlanCard | None
    source: str
    problem: str
    hint: str
    space: str


@dataclass(frozen=True)
class JobPage(Page):
    """One piece of long work, alone in `jobs`, with what it said."""

    template: ClassVar[str] = "job.html"
    sidebar: Sidebar
    jobs: Sequence[JobRow]
    log: str
