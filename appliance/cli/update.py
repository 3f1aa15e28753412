"""`hob update`: bring a newer version onto a device that was flashed, and go back to the one before."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import click
from msgspec.structs import asdict

from appliance.admin import client
from appliance.admin.messages import (
    DescribeUpdates,
    Done,
    GoBack,
    InspectUpdate,
    InstallUpdate,
    Offered,
    Progress,
    Reboot,
    Updates,
)
from appliance.admin.updates import FOLDERS
from appliance.cli.telling import Teller, say, spoken
from appliance.config import Settings, load_settings
from appliance.errors import InvalidRequestError, UpdateError
from appliance.update import arrivals
from appliance.update.story import story

FETCHING = 0.5
"""Share of the whole that fetching takes, where there is something to fetch."""

Tell = Callable[..., None]


@click.command("update")
@click.argument("source", required=False)
@click.option("--check", is_flag=True, help="Only say what there is.")
@click.option("--status", is_flag=True, help="Say what runs, what else is here, and how the last one went.")
@click.option("--rollback", is_flag=True, help="Go back to the version in the other slot.")
@click.option("--force", is_flag=True, help="Take a version that is not newer; as root, at the console.")
@click.option("--restart", is_flag=True, help="Restart at once, so that the new version is tried.")
@click.option("--scheduled", is_flag=True, hidden=True, help="As hob-update.timer does it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def command(
    source: str | None,
    check: bool,
    status: bool,
    rollback: bool,
    force: bool,
    restart: bool,
    scheduled: bool,
    as_json: bool,
) -> None:
    """Install the update SOURCE, a file or an address; without it, what the setting `update_url` offers.

    It goes into the slot that is not running and is tried at the next start. If it does not answer a question
    then, the device restarts into the version that runs now.
    """
    with spoken(as_json):
        settings = load_settings()
        if scheduled:
            on_schedule(settings)
        elif status:
            show(asyncio.run(client.ask(DescribeUpdates(), Updates)), as_json)
        elif rollback:
            told = asyncio.run(client.ask(GoBack(), Done)).text
            finish(told, as_json, restart=restart)
        elif check:
            look(settings, source, as_json)
        else:
            finish(bring(settings, source, as_json, force=force), as_json, restart=restart)


def on_schedule(settings: Settings) -> None:
    """What a night brings: nothing without an address; else a look, and an installation where wanted."""
    if not settings.update_url:
        return
    arrivals.sweep(settings.data_dir)
    here = asyncio.run(client.ask(DescribeUpdates(), Updates))
    version = offered(settings, here)
    if not version:
        click.echo(f"{here.version} runs, and there is nothing newer.")
    elif not settings.update_install:
        click.echo(f"{version} is there. Install it on the page Updates, or with `hob update`.")
    elif (here.tried, here.state) == (version, "returned"):
        click.echo(f"{version} was tried, and did not answer; it is not tried again by itself.")
    else:
        finish(bring(settings, None, False, force=False), False, restart=True)


def offered(settings: Settings, here: Updates) -> str:
    """The version that `update_url` has for this device; "" when it is not newer than what runs."""
    from appliance.update.newest import newest  # an HTTP client

    return newest(settings.update_url, here.compatible, here.version)


def look(settings: Settings, source: str | None, as_json: bool) -> None:
    """Say what a file, or the address in the settings, would bring."""
    if source is None:
        needs_url(settings)
        here = asyncio.run(client.ask(DescribeUpdates(), Updates))
        version = offered(settings, here)
        told = f"{version} is there." if version else f"{here.version} runs, and there is nothing newer."
    elif is_address(source):
        raise InvalidRequestError("--check takes a file", param="source", hint="Fetch it, or install it.")
    else:
        found = asyncio.run(client.ask(InspectUpdate(path=str(reachable(settings, source))), Offered))
        version = found.version
        told = f"{source} brings {version}" + ("." if found.newer else ", which is not newer than what runs.")
    if as_json:
        say({"version": version})
    else:
        click.echo(told)


def bring(settings: Settings, source: str | None, as_json: bool, *, force: bool) -> str:
    """Fetch, check and install; what was done, as a sentence."""
    if not client.present():
        raise client.absent()
    if force and os.geteuid() != 0:
        raise InvalidRequestError("--force is for root alone", hint="At the console or over SSH.")
    tell = Teller("Updating ...", as_json)
    try:
        fetched = source is None or is_address(source)
        file = fetch(settings, source, tell) if fetched else reachable(settings, source or "", tell)
        begin = FETCHING if fetched else 0.0
        staged = file.parent == arrivals.folder(settings.data_dir)
        try:
            told = install(file, lambda text, share: tell(text, begin + (1 - begin) * share), force=force)
        except UpdateError:
            if staged:  # it will never be taken
                file.unlink(missing_ok=True)
            raise
        if staged:
            file.unlink(missing_ok=True)
        return told
    finally:
        tell.stop()


def install(file: Path, tell: Tell, *, force: bool) -> str:
    """Have root's administration install a file; by force this process is root, and does it itself."""
    share = 0.0

    def told(progress: Progress) -> None:
        nonlocal share
        share = share if progress.fraction is None else progress.fraction
        tell(progress.text, share)

    if not force:
        return asyncio.run(client.ask(InstallUpdate(path=str(file.absolute())), Done, told)).text
    from appliance.update.install import install as installation

    version = asyncio.run(
        installation(file, lambda text, share: told(Progress(text=text, fraction=share)), force=True)
    )
    return f"Version {version} is installed and will be tried at the next start."


def fetch(settings: Settings, source: str | None, tell: Tell) -> Path:
    """The file of an address, or of what the one in the settings offers."""
    from appliance.library.remote import session
    from appliance.update import offer
    from appliance.update.fetch import fetch as fetched

    if source is None:
        needs_url(settings)
    url = source or settings.update_url
    tell("looking", 0.0)
    with session() as http:
        found = offer.find(http, url)

    def received(count: int, total: int | None) -> None:
        tell(f"fetching {found.file.name}", FETCHING * count / total if total else 0.0, count, total)

    file = fetched(found.file, settings.data_dir, received)
    arrivals.give(file, settings.data_dir)
    return file


def reachable(settings: Settings, source: str, tell: Tell = lambda *told: None) -> Path:
    """A file where root's administration takes it from: there already, or copied.

    Raises:
        InvalidRequestError: there is no such file.
    """
    file = Path(source)
    if not file.is_file():
        raise InvalidRequestError(f"{source} is no file", param="source", hint="Is the stick plugged in?")
    places = (*FOLDERS, arrivals.folder(settings.data_dir))
    if any(file.resolve().is_relative_to(place) for place in places):
        return file.resolve()
    return arrivals.take(
        file, settings.data_dir, lambda count, total: tell(f"copying {file.name}", 0.0, count, total)
    )


def needs_url(settings: Settings) -> None:
    """Refuse to look for an update nowhere."""
    if not settings.update_url:
        raise InvalidRequestError(
            "no address to ask for updates is set",
            param="source",
            hint="Name a file or an address, or set update_url.",
        )


def is_address(source: str) -> bool:
    """Whether a source is to be fetched."""
    return source.startswith(("http://", "https://"))


def finish(told: str, as_json: bool, *, restart: bool) -> None:
    """Say what was done, and restart where that is wanted."""
    if restart:
        asyncio.run(client.ask(Reboot(), Done))
        told += " The device restarts."
    if as_json:
        say({"done": told})
    else:
        click.echo(told if restart else f"{told} Restart it on the page Updates, or with --restart.")


def show(here: Updates, as_json: bool) -> None:
    """What runs, what else is here, how the last one went."""
    if as_json:
        say(asdict(here))
        return
    trial = ", on trial" if here.on_trial else ""
    click.echo(f"{here.version} runs in slot {here.slot}{trial} ({here.compatible}).")
    if here.other:
        back = "hob update --rollback goes back to it" if here.can_go_back else "it has not answered yet"
        click.echo(f"The other slot holds {here.other}; {back}.")
    if here.tried:
        click.echo(story(here))
