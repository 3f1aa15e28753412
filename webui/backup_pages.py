"""What the templates of the backups page are given; see `pages`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from webui.pages import Page, Sidebar


@dataclass(frozen=True)
class BackupRow:
    """A backup that can be restored.

    Attributes:
        value: what a form says of it: a name on this machine, or a path on a stick.
        title: when it was made; `facts` is one line about why, from where and how large.
        locked: it needs a passphrase.
        here: it lies on this machine, where it can be downloaded (if `portable`) and removed.
    """

    value: str
    title: str
    facts: str
    locked: bool
    portable: bool
    here: bool


@dataclass(frozen=True)
class MissingRow:
    """A model of the restored backup that is not here. `possible`: it can be added from where it was."""

    name: str
    facts: str
    possible: bool


@dataclass(frozen=True)
class RestoreCard:
    """A backup that was read and checked, before it is restored.

    Attributes:
        token: what the form that takes it says.
        facts: what is in it.
        replaces: what is here now, in a sentence.
        notes: what will not come back, and what else a person should know.
    """

    token: str
    facts: Sequence[tuple[str, str]]
    replaces: str
    notes: Sequence[str]


@dataclass(frozen=True)
class BackupsPage(Page):
    """Backups: make, keep, carry away, restore.

    Attributes:
        state: how the last ones went, in a sentence.
        failure: why the last attempt failed; empty when it did not.
        sticks: folders of sticks where a backup can be written.
        locked: backups are made for a passphrase or a recipient.
        opens: what opens the backups that are made now, in a sentence.
        missing: models of the restored backup that are not here.
        problem, hint: why the last wish was not granted; `done`: that it was.
    """

    template: ClassVar[str] = "backups.html"
    sidebar: Sidebar
    state: str
    failure: str
    backups: Sequence[BackupRow]
    found: Sequence[BackupRow]
    sticks: Sequence[str]
    locked: bool
    opens: str
    card: RestoreCard | None
    missing: Sequence[MissingRow]
    problem: str
    hint: str
    done: str


@dataclass(frozen=True)
class RestoringPage(Page):
    """Shown while Hob starts anew; leads back to the backups by itself. `automatic`: Hob starts by itself."""

    template: ClassVar[str] = "restoring.html"
    automatic: bool
