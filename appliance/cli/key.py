"""hob key: API keys for programs on the LAN."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click

from appliance.config import Settings, load_settings
from appliance.security.keys import add_key
from appliance.store import ApiKey, Store


@click.group()
def command() -> None:
    """Make, list and revoke API keys.

    Works whether Hob is running or not; a running Hob heeds every change at once.
    """


@command.command()
@click.argument("name")
def add(name: str) -> None:
    """Make a key for the program called NAME and print it, this once."""
    settings = load_settings()
    with _store(settings) as store:
        record, key = add_key(store, name)
    click.echo(key)
    click.echo(
        f"\nKey {record.id} ({record.name}). It is kept as a hash and cannot be shown again. Try it from"
        f" another machine:\n\n  curl http://{settings.name}.local:{settings.port}/v1/models"
        f' -H "Authorization: Bearer {key}"',
        err=True,
    )


@command.command(name="list")
@click.option("as_json", "--json", is_flag=True, help="Print JSON.")
def list_keys(as_json: bool) -> None:
    """List the keys; the keys themselves are not kept."""
    with _store(load_settings()) as store:
        keys = store.keys()
    if as_json:
        rows = [
            {name: getattr(key, name) for name in ("id", "name", "prefix", "created", "used")} for key in keys
        ]
        click.echo(json.dumps(rows, indent=2))
    elif not keys:
        click.echo("There are no keys. Make one: hob key add NAME")
    else:
        for key in keys:
            click.echo(_line(key))


@command.command()
@click.argument("key_id", metavar="ID", type=int)
def revoke(key_id: int) -> None:
    """Revoke the key with this ID; requests that carry it are refused from now on."""
    with _store(load_settings()) as store:
        store.revoke_key(key_id)
    click.echo(f"Key {key_id} is revoked.")


@contextmanager
def _store(settings: Settings) -> Iterator[Store]:
    store = Store(settings.data_dir / "hob.db")
    try:
        yield store
    finally:
        store.close()


def _line(key: ApiKey) -> str:
    used = f"last used {_date(key.used)}" if key.used is not None else "never used"
    return f"{key.id:>4}  {key.prefix}…  made {_date(key.created)}, {used:<29}  {key.name}"


def _date(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
