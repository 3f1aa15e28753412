"""`hob owner`: what to do about a lost password, on the machine itself."""

import click

from appliance.config import load_settings
from appliance.store import Store


@click.group()
def command() -> None:
    """Manage the owner's password from the console."""


@command.command()
@click.confirmation_option(prompt="Forget the owner's password and sign all browsers out?")
def reset() -> None:
    """Forget the owner's password and sign all browsers out; chats and keys stay.

    The next start of Hob shows a new code, with which the first visitor sets a new password.
    """
    store = Store(load_settings().data_dir / "hob.db")
    try:
        there_was = store.remove_owner()
    finally:
        store.close()
    if there_was:
        click.echo("The password is forgotten. Start Hob again to see the code for a new one.")
    else:
        click.echo("There is no owner yet.")
