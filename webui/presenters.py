"""From what is stored to what is shown: pure functions, texts for people included."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from appliance.domain import ModelCard
from appliance.store import ApiKey, Chat, SearchHit, StoredMessage
from appliance.system import Health
from webui.markdown import render
from webui.pages import ChatGroup, ChatLink, Composer, Hit, KeyRow, ModelChoice, ModelRow, Sidebar, Turn

# What the built-in guide is made for; it knows little else.
SUGGESTIONS: Final = (
    "What is Hob?",
    "How do I add a model?",
    "How do I reach Hob from my phone?",
    "Does anything I write leave this house?",
)


def sidebar(
    chats: Iterable[Chat], now: datetime, current: int | None = None, query: str = "", warning: str = ""
) -> Sidebar:
    """The list of chats, grouped by the day of their last use. `now` is in the local time zone."""
    groups: dict[str, list[ChatLink]] = {}
    for chat in chats:
        days = (now.date() - datetime.fromtimestamp(chat.updated, now.tzinfo).date()).days
        label = (
            "Today"
            if days <= 0
            else "Yesterday"
            if days == 1
            else "Last seven days"
            if days < 7
            else "Earlier"
        )
        groups.setdefault(label, []).append(ChatLink(chat.id, chat.title, chat.id == current))
    return Sidebar([ChatGroup(label, links) for label, links in groups.items()], query, warning)


def composer(
    cards: Iterable[ModelCard],
    chosen: str,
    chat_id: int | None = None,
    running: StoredMessage | None = None,
    notice: str = "",
    draft: str = "",
    problem: str = "",
    hint: str = "",
) -> Composer:
    """The form for the next message of a chat (None: of a new one)."""
    return Composer(
        action="/chats" if chat_id is None else f"/chats/{chat_id}/messages",
        models=[ModelChoice(card.name, card.name == chosen) for card in cards if not card.problem],
        stop=None if running is None else f"/chats/{running.chat_id}/messages/{running.id}/stop",
        notice=notice,
        draft=draft,
        problem=problem,
        hint=hint,
    )


def notice(health: Health) -> str:
    """What stands above the form while no answer can be given at once; empty when all is well."""
    if health.status == "ok":
        return ""
    reason = f" ({health.reason.rstrip('.')})" if health.reason else ""
    if health.status == "starting":
        return f"Hob is waking up{reason}. You may ask already; the answer comes when it is awake."
    return f"Hob cannot answer{reason}."


def waits_for(compiling: float | None) -> str:
    """What an answer waits for while its model is compiled so far; empty when it is not."""
    if compiling is None:
        return ""
    return f"Preparing the model for this machine, this once: {compiling:.0%}"


def turn(message: StoredMessage, last: bool) -> Turn:
    """One message. `last` marks the end of the conversation."""
    if message.role == "user":
        return Turn(message.id, message.chat_id, "user", "You", message.state, text=message.content)
    problem, hint = _trouble(message)
    return Turn(
        message.id,
        message.chat_id,
        "assistant",
        message.model,
        message.state,
        html=render(message.content),
        offset=len(message.content),
        problem=problem,
        hint=hint,
        stats=stats(message),
        last=last,
    )


def turns(messages: Sequence[StoredMessage]) -> list[Turn]:
    """A conversation without its system messages."""
    shown = [message for message in messages if message.role != "system"]
    return [turn(message, message is shown[-1]) for message in shown]


def _trouble(message: StoredMessage) -> tuple[str, str]:
    """Why an answer is not complete, and the next step; empty texts for a complete one."""
    if message.state == "error":
        return "The answer broke off." if message.content else "No answer.", message.error
    if message.state == "stopped":
        return message.error or "Stopped.", ""
    if message.finish == "length":
        return "The answer reached its greatest length.", "Ask Hob to go on."
    return "", ""


def stats(message: StoredMessage) -> str:
    """Tokens and speed of an answer: "42 tokens · 118 tokens/s"; empty when unknown."""
    if not message.completion_tokens:
        return ""
    count = f"{message.completion_tokens} token{'s' if message.completion_tokens > 1 else ''}"
    if message.timings is None or message.timings.decode <= 0 or message.completion_tokens < 2:
        return count
    # The first token comes out of prefill; decode makes the others.
    speed = (message.completion_tokens - 1) / message.timings.decode
    return f"{count} · {speed:.0f} tokens/s" if speed >= 10 else f"{count} · {speed:.1f} tokens/s"


def hit(found: SearchHit) -> Hit:
    """A search result; one in a message leads to that message."""
    anchor = "" if found.message_id is None else f"#m{found.message_id}"
    return Hit(f"/chats/{found.chat_id}{anchor}", found.title, found.snippet)


def size(count: int) -> str:
    """Bytes for people, in powers of 1000 as disks are sold: "5.2 MB"."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"


def model_row(card: ModelCard) -> ModelRow:
    """An installed model."""
    facts = [card.quantization, size(card.bytes), f"{card.context:,} tokens of context"]
    if card.parameters is not None:
        billions = card.parameters / 1e9
        facts.insert(
            0,
            f"{billions:.1f} billion weights" if billions >= 1 else f"{billions * 1000:.0f} million weights",
        )
    return ModelRow(card.name, ", ".join(facts), card.note, card.problem)


def key_row(key: ApiKey, now: datetime) -> KeyRow:
    """An API key on the settings page. `now` is in the local time zone."""
    if key.used is None:
        return KeyRow(key.id, key.name, key.prefix, "never used")
    return KeyRow(
        key.id, key.name, key.prefix, f"last used {datetime.fromtimestamp(key.used, now.tzinfo):%-d %B %Y}"
    )


def addresses(name: str, port: int, numbers: Sequence[IPv4Address | IPv6Address]) -> list[str]:
    """Where other devices reach this Hob: by name, then by IPv4 numbers, or else IPv6 ones."""
    v4 = [str(number) for number in numbers if number.version == 4]
    hosts = [name, *(v4 or [f"[{number}]" for number in numbers])]
    return [f"http://{host}" if port == 80 else f"http://{host}:{port}" for host in hosts]
