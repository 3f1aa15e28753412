"""`hob backup`: make, list, check and restore backups, and choose what opens them."""

import fcntl
import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from appliance.backup import create as making
from appliance.backup import folder, header, keys, pending, restore, snapshot, wanted
from appliance.backup.content import DATABASE, Manifest
from appliance.backup.folder import Backup
from appliance.cli.telling import Teller, say, spoken
from appliance.config import Settings, load_settings
from appliance.errors import BackupError, HobError, InvalidRequestError, PassphraseError, StoreError
from appliance.library import space
from appliance.models import Models

MAX_FILE = 4096
"""Bytes of a file with a passphrase or an identity."""

opening = [
    click.option("--passphrase-file", type=click.Path(path_type=Path), help="File with the passphrase."),
    click.option("--identity-file", type=click.Path(path_type=Path), help="File with the age identity."),
]


@click.group()
def command() -> None:
    """Back up chats, people, keys, settings and the list of models, and bring them back.

    A running Hob goes on meanwhile. Backups are encrypted with age.
    """


@command.command()
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write it to, such as a stick's.")
@click.option(
    "--recipient", "recipients", multiple=True, help="age recipient that opens it, and nothing else."
)
@click.option("--nightly", is_flag=True, help="Make none if nothing has changed; old ones make room.")
@click.option("as_json", "--json", is_flag=True, help="Print JSON lines.")
def create(to: Path | None, recipients: tuple[str, ...], nightly: bool, as_json: bool) -> None:
    """Make a backup now."""
    with spoken(as_json):
        settings = _settings()
        if to is not None and not to.is_dir():
            raise InvalidRequestError(f"{to} is not a folder", param="to", hint="Is the stick plugged in?")
        told = Teller("Backing up ...", as_json)
        try:
            request = making.Request("nightly" if nightly else "manual", to, nightly, recipients)
            made = making.create(settings, request, told)
        finally:
            told.stop()
        if as_json:
            say({"backup": str(made.path) if made else "", "bytes": made.size if made else 0})
        elif made is None:
            click.echo("Nothing has changed since the last backup.")
        else:
            click.echo(f"{made.path}  ({space.size(made.size)})")
            if not made.header.portable:
                click.echo(
                    "Only this machine can read it. For backups that outlive it: hob backup passphrase",
                    err=True,
                )


@command.command(name="list")
@click.option("as_json", "--json", is_flag=True, help="Print JSON.")
def list_backups(as_json: bool) -> None:
    """List the backups on this machine, newest first."""
    place = folder.of(_settings().data_dir)
    found = folder.backups(place)
    last = folder.last(place)
    if as_json:
        rows = [_row(backup) for backup in found]
        click.echo(json.dumps({"backups": rows, "failed": last.failed, "error": last.error}, indent=2))
        return
    for backup in found:
        head = backup.header
        opens = "passphrase" if head.kdf else "identity" if head.portable else "this machine"
        click.echo(f"{_date(head.created)}  {space.size(backup.size):>9}  {opens:<12}  {backup.path}")
    if not found:
        click.echo("There are no backups yet. Make one: hob backup create")
    if last.failed:
        click.echo(f"The last attempt failed ({_date(last.failed)}): {last.error}. {last.hint}", err=True)


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the backup called NAME from this machine."""
    backup = folder.find(folder.of(_settings().data_dir), Path(name).name)
    with space.writing(backup.path.parent):
        backup.path.unlink()
    click.echo(f"{backup.name} is removed.")


@command.command()
@click.argument("file")
@opening[0]
@opening[1]
@click.option("as_json", "--json", is_flag=True, help="Print JSON lines.")
def verify(file: str, passphrase_file: Path | None, identity_file: Path | None, as_json: bool) -> None:
    """Read all of FILE and check it, as restoring would, and change nothing."""
    with spoken(as_json):
        settings = _settings()
        path = _found(settings, file)
        secrets = _secrets(path, settings, passphrase_file, identity_file)
        checked = restore.verify(path, settings.data_dir, **secrets)
        if as_json:
            say({"sound": True, "proven": checked.proven, **_facts(checked.manifest)})
            return
        click.echo(f"{path} is sound. It holds {_contents(checked.manifest)}")
        for note in checked.notes:
            click.echo(note, err=True)


@command.command(name="restore")
@click.argument("file")
@opening[0]
@opening[1]
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("as_json", "--json", is_flag=True, help="Print JSON lines; asks nothing, so --yes is needed.")
def restore_file(
    file: str, passphrase_file: Path | None, identity_file: Path | None, yes: bool, as_json: bool
) -> None:
    """Replace what is here by what is in FILE: a path, or a name that `hob backup list` shows.

    What was here is backed up first. All browsers have to sign in again, with the password of the backup.
    """
    with spoken(as_json):
        settings = _settings()
        path = _found(settings, file)
        secrets = _secrets(path, settings, passphrase_file, identity_file)
        told = Teller("Reading the backup ...", as_json)
        try:
            ready = restore.prepare(path, settings.data_dir, told, **secrets)
        finally:
            told.stop()
        try:
            if not as_json:
                click.echo(f"The backup holds {_contents(ready.manifest)}\nIt replaces {_present(settings)}")
                for note in ready.notes:
                    click.echo(note, err=True)
            if not yes and (as_json or not click.confirm("Restore it?")):
                raise InvalidRequestError(
                    "nothing was restored", hint="Say --yes to restore without a question."
                )
            making.keep_present(settings, lambda step, done: None)
            restore.commit(settings.data_dir, ready.token)
        except BaseException:
            restore.discard(settings.data_dir, ready.token)
            raise
        applied = _apply(settings)
        if as_json:
            say({"restored": True, "running": not applied, **_facts(ready.manifest)})
        elif applied:
            click.echo("Restored. Start Hob: hob serve")
        else:
            click.echo("Hob is running: it restores when it starts again (systemctl restart hob).")
        if applied and not as_json:
            _tell_missing(load_settings())


@command.command()
@click.option("--passphrase-file", type=click.Path(path_type=Path), help="File with the new passphrase.")
@click.option("--recipient", "recipients", multiple=True, help="age recipient that opens backups as well.")
@click.option("--only-recipients", is_flag=True, help="No passphrase: only the recipients open backups.")
def passphrase(passphrase_file: Path | None, recipients: tuple[str, ...], only_recipients: bool) -> None:
    """Choose what opens the backups that are made from now on.

    Neither the passphrase nor anything that opens a backup is kept on this machine. Backups made before need
    what was chosen then.
    """
    place = folder.of(_settings().data_dir)
    if only_recipients:
        key = keys.of_recipients(recipients, time.time())
    else:
        chosen = _secret(passphrase_file) if passphrase_file else _ask("New passphrase", confirm=True)
        key = keys.of_passphrase(chosen, time.time(), recipients)
    keys.save(place, key)
    click.echo(f"Backups are made for {', '.join(key.recipients)} from now on.")
    if not only_recipients:
        click.echo("Without the passphrase nobody can read them, you neither: write it down.", err=True)


@command.command()
@click.argument("file")
@click.option("--passphrase-file", type=click.Path(path_type=Path), help="File with the passphrase.")
def identity(file: str, passphrase_file: Path | None) -> None:
    """Print the age identity that a passphrase makes for FILE, for use with `age -d -i`."""
    settings = _settings()
    path = _found(settings, file)
    secrets = _secrets(path, settings, passphrase_file, None)
    found = restore.opener(header.peek(path), settings.data_dir, passphrase=secrets["passphrase"])
    click.echo(f"# opens {path.name}, and every backup with recipient {found.recipient}\n{found.identity}")


@command.command()
def models() -> None:
    """List the models that the restored backup names and that are not here, each with what adds it again."""
    if not _tell_missing(_settings()):
        click.echo("All models that a backup named are here.")


def _settings() -> Settings:
    """The settings, if the data folder is this user's: files of another user would lock the service out.

    Raises:
        BackupError: it is somebody else's.
    """
    settings = load_settings()
    if settings.data_dir.exists() and (owner := settings.data_dir.stat().st_uid) != os.geteuid():
        raise BackupError(
            f"{settings.data_dir} belongs to another user (uid {owner})",
            hint="Run it as that user: sudo -u hob hob backup ...",
        )
    return settings


def _found(settings: Settings, file: str) -> Path:
    """A backup by its path, or by its name in the folder of backups."""
    place = folder.of(settings.data_dir)
    path = Path(file)
    if not path.exists() and (place / path.name).exists() and path.name == file:
        path = place / file
    return folder.sound(path).path


def _secrets(
    path: Path, settings: Settings, passphrase: Path | None, identity: Path | None
) -> dict[str, str]:
    """What opens a backup, from files or from the person at the terminal."""
    if identity is not None:
        return {"identity": _secret(identity)}
    head = header.peek(path)
    if head.kdf is None:
        return {"passphrase": ""}
    return {"passphrase": _secret(passphrase) if passphrase else _ask("Passphrase of the backup")}


def _secret(file: Path) -> str:
    try:
        text = file.read_bytes()[: MAX_FILE + 1].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BackupError(f"{file} cannot be read: {getattr(error, 'strerror', error)}") from error
    if len(text) > MAX_FILE:
        raise BackupError(f"{file} is too large for a passphrase or an identity")
    return text.rstrip("\r\n")


def _ask(prompt: str, confirm: bool = False) -> str:
    if not sys.stdin.isatty():
        raise PassphraseError("a passphrase is needed", hint="Give a file with it: --passphrase-file FILE.")
    answer: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm)
    return answer


def _apply(settings: Settings) -> bool:
    """Put what was restored in place now, if no service runs."""
    lock = os.open(settings.data_dir / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pending.apply(settings)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _tell_missing(settings: Settings) -> bool:
    """Print the models that are to come back; whether there are any."""
    missing = wanted.missing(wanted.read(settings.data_dir), Models(settings).directories())
    for one in missing:
        how = f"hob model add {one.source} --name {one.model.name}" if one.source else "it came from a file"
        click.echo(f"{one.model.name} ({space.size(one.model.size)}): {how}")
    return bool(missing)


def _present(settings: Settings) -> str:
    """What is here, in words."""
    try:
        found = snapshot.counts(settings.data_dir / DATABASE)
    except StoreError as error:
        return f"a database that is damaged ({error.message}), which is kept beside it."
    except HobError:
        return "nothing: this Hob is new."
    return f"{found.chats} chats with {found.messages} messages and {found.keys} API keys."


def _contents(manifest: Manifest) -> str:
    counts, head = manifest.counts, manifest.header
    owner = "the owner's password" if counts.owner else "no owner"
    return (
        f"{counts.chats} chats with {counts.messages} messages, {counts.keys} API keys, {owner} and a list of"
        f" {manifest.models} models, of {head.name}, {_date(head.created)}."
    )


def _facts(manifest: Manifest) -> dict[str, Any]:
    counts = manifest.counts
    return {
        "created": manifest.header.created,
        "name": manifest.header.name,
        "chats": counts.chats,
        "messages": counts.messages,
        "keys": counts.keys,
        "owner": counts.owner,
        "models": manifest.models,
    }


def _row(backup: Backup) -> dict[str, Any]:
    head = backup.header
    return {
        "name": backup.name,
        "path": str(backup.path),
        "created": head.created,
        "bytes": backup.size,
        "reason": head.reason,
        "portable": head.portable,
    }


def _date(when: float) -> str:
    return datetime.fromtimestamp(when).astimezone().strftime("%Y-%m-%d %H:%M")
