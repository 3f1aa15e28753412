"""From backups to what their page shows: pure functions, texts for people included."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from appliance.backup.content import Counts, Manifest
from appliance.backup.folder import Backup, Last
from appliance.backup.header import Reason
from appliance.backup.keys import Key
from appliance.backup.restore import Prepared
from appliance.backup.wanted import Wanted
from appliance.library.space import size
from webui.backup_pages import BackupRow, MissingRow, RestoreCard

REASONS: Final[Mapping[Reason, str]] = {
    "nightly": "made at night",
    "manual": "made by hand",
    "restore": "made before another was restored",
}
DONE: Final[Mapping[str, str]] = {
    "made": "The backup is made.",
    "written": "The backup is on the stick, all of it: it may be pulled out.",
    "passphrase": "Backups made from now on need the new passphrase. Write it down: nothing shows it again.",
    "removed": "The backup is removed.",
    "adding": "The model is being added: see the page Models.",
}


def when(seconds: float, now: datetime) -> str:
    """A time for people."""
    at = datetime.fromtimestamp(seconds, now.tzinfo)
    days = (now.date() - at.date()).days
    if days in (0, 1):
        return f"{('Today', 'Yesterday')[days]}, {at:%H:%M}"
    return f"{at:%-d %B %Y, %H:%M}"


def row(backup: Backup, now: datetime, *, here: bool) -> BackupRow:
    """A backup as a line of a list."""
    head = backup.header
    facts = [REASONS[head.reason], size(backup.size)]
    if not here:
        facts = [f"from {head.name}", size(backup.size), str(backup.path)]
    if not head.portable:
        facts.append("only this machine can read it" if here else "only the machine that made it can read it")
    return BackupRow(
        value=backup.name if here else str(backup.path),
        title=when(head.created, now),
        facts=" · ".join(facts),
        locked=head.kdf is not None,
        portable=head.portable,
        here=here,
    )


def state(own: Sequence[Backup], now: datetime) -> str:
    """How the last backup went."""
    if not own:
        return "There is no backup on this machine yet."
    at = when(own[0].header.created, now)
    return (
        f"The last one was made {at[:1].lower()}{at[1:]}." if at[0] in "TY" else f"The last one is of {at}."
    )


def failed(last: Last, now: datetime) -> str:
    """Why the last attempt failed; "" where it did not."""
    if not last.failed:
        return ""
    return f"The attempt of {when(last.failed, now)} failed: {last.error}. {last.hint}".rstrip()


def opens(key: Key | None, now: datetime) -> str:
    """What opens the backups that are made now."""
    if key is None or not key.portable:
        return (
            "No passphrase is set. Backups help against mistakes, on this machine; to take them elsewhere,"
            " set one."
        )
    if key.kdf is None:
        return f"Backups are made for {', '.join(key.recipients)}, by age."
    return f"A passphrase was set on {datetime.fromtimestamp(key.made, now.tzinfo):%-d %B %Y}."


def card(ready: Prepared, present: Counts, now: datetime) -> RestoreCard:
    """What is in a prepared backup, and what it replaces."""
    manifest = ready.manifest
    counts, head = manifest.counts, manifest.header
    facts = [
        ("From", f"{head.name}, {when(head.created, now)}, Hob {head.version}"),
        ("Chats", f"{counts.chats} with {counted(counts.messages, 'message')}"),
        ("API keys", str(counts.keys)),
        ("Models", f"a list of {manifest.models}, to add them again afterwards"),
        ("Password", "the owner's, as it was then" if counts.owner else "none"),
    ]
    return RestoreCard(ready.token, facts, replaces(present), (*ready.notes, *remarks(ready, manifest)))


def remarks(ready: Prepared, manifest: Manifest) -> list[str]:
    """What a person should know before."""
    said = []
    if not manifest.counts.owner:
        said.append("It has no owner: the next visitor becomes one, with the set-up code of this machine.")
    if not ready.proven:
        said.append("Nothing proves who made it: restore it only if you know where it has been.")
    return said


def replaces(present: Counts) -> str:
    """What is on this machine now."""
    if not present.chats:
        return "This Hob has no chats yet; its password and keys are replaced."
    chats = f"{counted(present.chats, 'chat')} with {counted(present.messages, 'message')}"
    named = counted(present.keys, "API key")
    return f"This replaces what is here: {chats}, {named}, the password. It is backed up first."


def counted(count: int, what: str) -> str:
    """A number of things: "1 chat", "2 chats"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def missing_row(one: Wanted) -> MissingRow:
    """A model to bring back."""
    model = one.model
    where = one.source or f"from the file {model.origin.source}: add it from where that is"
    facts = [size(model.size), where, *(["it answered by default"] if one.default else [])]
    return MissingRow(model.name, " · ".join(facts), bool(one.source))
