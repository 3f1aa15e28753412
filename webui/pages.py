"""What each page's template is given: one frozen dataclass per page, complete and ready to print.

A template uses nothing but these fields and the `static` function; a test compares them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from markupsafe import Markup

EMPTY: Final = Markup()

TurnState = Literal["running", "done", "stopped", "error"]


@dataclass(frozen=True)
class Page:
    """Any page; `template` is the file under templates/ that prints it."""

    template: ClassVar[str]


@dataclass(frozen=True)
class SetupPage(Page):
    """First visit from the LAN: the owner types the console's code and chooses a password."""

    template: ClassVar[str] = "setup.html"
    error: str | None


@dataclass(frozen=True)
class LoginPage(Page):
    """Sign-in. `next` is the local path to go to afterwards."""

    template: ClassVar[str] = "login.html"
    error: str | None
    next: str


@dataclass(frozen=True)
class ErrorPage(Page):
    """What went wrong and the next step."""

    template: ClassVar[str] = "error.html"
    status: int
    message: str
    hint: str


@dataclass(frozen=True)
class ChatLink:
    """A line in the list of chats."""

    id: int
    title: str
    current: bool


@dataclass(frozen=True)
class ChatGroup:
    """Chats last used in the same stretch of time: "Today", "Yesterday", …"""

    label: str
    chats: Sequence[ChatLink]


@dataclass(frozen=True)
class Sidebar:
    """The list of chats with its search field, and what the owner should know wherever they are.

    `warning`: what is wrong with this machine and what helps; empty while nothing is.
    """

    groups: Sequence[ChatGroup]
    query: str = ""
    warning: str = ""


@dataclass(frozen=True)
class ModelChoice:
    """A model in the picker."""

    name: str
    chosen: bool


@dataclass(frozen=True)
class Composer:
    """The form at the bottom.

    Attributes:
        action: where a message is posted.
        models: what the picker offers; the picker is shown when there is a choice.
        stop: where the running answer is stopped, or None when nothing runs.
        notice: why an answer would have to wait; empty when it would not.
        draft: text to start with.
        problem: why the last message was not accepted; empty when it was.
        hint: the next step after a problem.
    """

    action: str
    models: Sequence[ModelChoice]
    stop: str | None = None
    notice: str = ""
    draft: str = ""
    problem: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        who: "You" or the model's name.
        text: a question, as typed; answers have `html` instead.
        offset: characters of the answer that `html` shows; the live stream goes on from there.
        problem, hint: why an answer is not complete, and the next step.
        stats: tokens and speed, for people.
        last: the end of the conversation, where answers can be regenerated.
    """

    id: int
    chat_id: int
    role: Literal["user", "assistant"]
    who: str
    state: TurnState
    text: str = ""
    html: Markup = EMPTY
    offset: int = 0
    problem: str = ""
    hint: str = ""
    stats: str = ""
    last: bool = False


@dataclass(frozen=True)
class TurnFragment(Page):
    """A single message, as the live stream replaces it when the answer is complete."""

    template: ClassVar[str] = "turn.html"
    turn: Turn


@dataclass(frozen=True)
class HomePage(Page):
    """A new chat. `note` is the model's; `suggestions` are questions it can answer.

    `private`: the model runs on this machine.
    """

    template: ClassVar[str] = "home.html"
    sidebar: Sidebar
    composer: Composer
    note: str
    suggestions: Sequence[str]
    private: bool = True


@dataclass(frozen=True)
class ChatPage(Page):
    """A conversation.

    `refresh` is where a page without JavaScript goes on looking at a running answer; None when none runs.
    """

    template: ClassVar[str] = "chat.html"
    sidebar: Sidebar
    composer: Composer
    id: int
    title: str
    note: str
    turns: Sequence[Turn]
    refresh: str | None


@dataclass(frozen=True)
class Hit:
    """A search result: where it leads, and the text around the match in pieces (text, whether it matched)."""

    href: str
    title: str
    snippet: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class SearchPage(Page):
    """Results of a search in titles and messages."""

    template: ClassVar[str] = "search.html"
    sidebar: Sidebar
    query: str
    hits: Sequence[Hit]


@dataclass(frozen=True)
class ModelRow:
    """An installed model; `facts` is one line about size and context."""

    name: str
    facts: str
    note: str
    problem: str


@dataclass(frozen=True)
class KeyRow:
    """An API key on the settings page; `used` is a date or "never used"."""

    id: int
    name: str
    prefix: str
    used: str


@dataclass(frozen=True)
class SettingsPage(Page):
    """Addresses, API keys.

    Attributes:
        addresses: where other devices reach this Hob, by name first; empty when only this machine does.
        qr: the last address, one of numbers, as an SVG; empty when there is none.
        api: where programs reach Hob, as this browser does.
        new_key: an API key just made, shown this once; empty otherwise.
        signed_in: whether this browser has a session that it can end.
    """

    template: ClassVar[str] = "settings.html"
    sidebar: Sidebar
    addresses: Sequence[str]
    qr: Markup
    api: str
    keys: Sequence[KeyRow]
    new_key: str
    signed_in: bool
    version: str


@dataclass(frozen=True)
class Fact:
    """A name and what there is to say about it, both for people."""

    name: str
    text: str


@dataclass(frozen=True)
class DeviceRow:
    """A kind of device: `name` of the one here, if any; `state` in a word; why, and the next step if any."""

    kind: str
    name: str
    state: str
    reason: str
    hint: str


@dataclass(frozen=True)
class SystemPage(Page):
    """What computes here, how fast, and how much room there is.

    Attributes:
        failures: models that did not run on a device, a sentence each.
        speed: the tier in a sentence; empty while it is not known.
        problem: why the last attempt to measure failed; empty when it did not.
        due: a measurement is waiting for a quiet moment.
    """

    template: ClassVar[str] = "system.html"
    sidebar: Sidebar
    machine: Sequence[Fact]
    devices: Sequence[DeviceRow]
    failures: Sequence[str]
    speed: str
    measures: Sequence[Fact]
    problem: str
    due: bool
    engine: Sequence[Fact]
