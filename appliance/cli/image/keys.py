"""`hob image keys`: the keys that updates and images are signed with."""

import time
from pathlib import Path

import click


@click.command("keys")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", default="Hob", show_default=True, help="What the certificates are called.")
@click.option("--renew", is_flag=True, help="Issue a new signing certificate from the authority in DIR.")
def command(folder: Path, name: str, renew: bool) -> None:
    """Make an authority and a signing certificate in the new folder DIR, or say how those in it are.

    Devices trust what an image built with `--keys DIR` was given; updates must be signed from the same DIR.
    """
    from builder.image import keys

    if renew:
        found = keys.renew(folder, name)
        click.echo(f"{found.certificate} is new; devices that trust {found.authority} trust it too.")
    elif (folder / "ca.pem").exists():
        found = keys.load(folder)
    else:
        found = keys.make(folder, name)
        click.echo(f"{folder}: an authority, and a signing certificate. Build with: --keys {folder}")
        click.echo("Keep ca.key where only you get at it. Whoever has signing.key can update your devices.")
    day = time.strftime("%Y-%m-%d", time.gmtime(found.expires))
    click.echo(f"The signing certificate ends on {day}.")
    if found.expire_soon(time.time()):
        click.echo(f"Renew it soon: hob image keys --renew {folder}", err=True)
