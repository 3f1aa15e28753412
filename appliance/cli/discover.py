"""hob discover: the Hobs on this network."""

import asyncio
import json
from dataclasses import asdict

import click

from appliance.discovery.browse import browse


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="How long to listen."
)
@click.option("as_json", "--json", is_flag=True, help="Print JSON.")
def command(seconds: float, as_json: bool) -> None:
    """List the Hobs that answer on the LAN."""
    found = asyncio.run(browse(seconds))
    if as_json:
        click.echo(json.dumps([asdict(hob) | {"url": hob.url} for hob in found], indent=2))
        return
    for hob in found:
        click.echo(f"{hob.url}\t{hob.name}\tversion {hob.version or 'unknown'}\t{' '.join(hob.addresses)}")
    if not found:
        click.echo(f"No Hob answered within {seconds:g} seconds.", err=True)
        click.echo("Is one running with `hob serve --lan` on this network?", err=True)
