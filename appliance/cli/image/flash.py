"""`hob image flash`: write an image to a card, a stick or a disk."""

import shutil
import sys
from pathlib import Path

import click

from appliance.cli.telling import Teller, say, spoken
from builder.errors import DriveError
from builder.image import drives, first_boot, flash
from builder.image.cache import Cache, default_root
from builder.image.toolbox import Toolbox, kept_toolbox

# What share of the whole each stage takes, and where it begins.
STAGES = {"check": (0.0, 0.05), "write": (0.05, 0.65), "verify": (0.7, 0.28), "settings": (0.98, 0.02)}


@click.command("flash")
@click.argument("image", metavar="IMG", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("device", type=click.Path(path_type=Path), required=False)
@click.option("--yes", is_flag=True, help="Do not ask; overwrite even a large or built-in disk.")
@click.option("--plain", is_flag=True, help="Write the image alone: no settings, no set-up code.")
@click.option("--hostname", default="", help="Name in the network: NAME.local; the image's own by default.")
@click.option("--wifi", metavar="SSID", default="", help="Wi-Fi to join; its password is asked for.")
@click.option(
    "--wifi-password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True),
    help="File with the password (- for standard input) instead of asking; an empty one for an open network.",
)
@click.option("--wifi-country", metavar="CC", default="", help="Where the device stands: DE, GB, US …")
@click.option(
    "--ssh-key",
    "keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="File with public keys that may log in; SSH is off without one.",
)
@click.option("--locale", default="", help="Language and formats: de_DE.UTF-8.")
@click.option("--timezone", default="", help="Time zone: Europe/Berlin.")
@click.option(
    "--keyring",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take only what these have signed: keyring.pem of `hob image keys`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def command(
    image: Path,
    device: Path | None,
    yes: bool,
    plain: bool,
    hostname: str,
    wifi: str,
    wifi_password_file: Path | None,
    wifi_country: str,
    keys: tuple[Path, ...],
    locale: str,
    timezone: str,
    keyring: Path | None,
    as_json: bool,
) -> None:
    """Write the image IMG (.img.xz or .img) to DEVICE, read it back, and leave settings for the first start.

    Without DEVICE, lists the disks there are.
    """
    if plain and (hostname or wifi or keys or locale or timezone):
        raise click.UsageError("--plain writes no settings: leave the others out.")
    if device is None:
        raise DriveError("which disk?", hint=listing())
    with spoken(as_json):
        settings = None
        if not plain:
            settings = first_boot.Settings(
                hostname=hostname,
                ssid=wifi,
                password=wifi_password(wifi, wifi_password_file) if wifi else "",
                country=wifi_country,
                ssh_keys=tuple(key for path in keys for key in first_boot.ssh_keys(path)),
                locale=locale,
                timezone=timezone,
                setup_code=first_boot.new_setup_code(),
            )
        touched = False
        told = Teller(f"Writing {image.name} to {device} ...", as_json)

        def tell(stage: str, text: str, fraction: float | None) -> None:
            start, share = STAGES[stage]
            told(text, start + share * (fraction or 0))

        try:
            opened = flash.inspect(image, tell, keyring)
            disk = flash.admit(device, opened, confirmed=yes)
            if not yes and not as_json and sys.stdin.isatty():
                told.stop()
                click.confirm(f"Everything on {disk} will be lost. Go on?", abort=True, err=True)
            touched = True
            flash.write(opened, device, settings, tell, toolbox())
        except KeyboardInterrupt as error:
            state = "does not start anything now: flash it again" if touched else "is as it was"
            raise DriveError(f"stopped; {device} {state}") from error
        finally:
            told.stop()
        finish(opened, device, settings, as_json)


def finish(image: flash.Image, device: Path, settings: first_boot.Settings | None, as_json: bool) -> None:
    """Say what is done and what comes next."""
    code, name = (settings.setup_code, settings.hostname or "hob") if settings else ("", "hob")
    if as_json:
        say({"device": str(device), "image": image.path.name, "setup_code": code})
        return
    click.echo(f"{image.path.name} is on {device} and reads back right.")
    if not image.named:
        click.echo("It had no manifest beside it, so nobody vouches for where it comes from.", err=True)
    if settings:
        click.echo(f"Start the device with it, wait two minutes, and open http://{name}.local")
        click.echo(f"The first visitor sets the owner's password, with this code: {code}")


def listing() -> str:
    """The disks that may be meant, for a person."""
    found = drives.candidates(drives.present())
    lines = [
        drive.describe() + (f"  (asks for --yes: {against.text})" if against else "")
        for drive, against in found
    ]
    if not lines:
        return "No disk is free to be overwritten: plug in a card or a stick."
    return "\n     ".join(["Name one of these after the image:", *lines])


def wifi_password(ssid: str, file: Path | None) -> str:
    """The password from a file, or from the person."""
    if file is None:
        return str(
            click.prompt(f"Password of {ssid} (empty if it has none)", hide_input=True, default="", err=True)
        )
    with click.open_file(str(file)) as opened:
        return str(opened.read()).rstrip("\r\n")


def toolbox() -> Toolbox | None:
    """The image builder's tools, if they are needed and there."""
    return None if shutil.which("mcopy") else kept_toolbox(Cache(default_root()))
