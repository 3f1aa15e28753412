"""`hob image prune`: give back the room that the building of images takes."""

from pathlib import Path

import click

from appliance.cli.telling import spoken
from appliance.library.space import size
from builder.image import prune
from builder.image.cache import Cache, default_root
from builder.image.toolbox import kept_toolbox


@click.command("prune")
@click.option(
    "--days", default=30, show_default=True, type=click.IntRange(0), help="Keep what was used in these days."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and leave it.")
def command(days: int, dry_run: bool) -> None:
    """Remove from the cache what no build has used for a while. It is made anew when it is needed."""
    with spoken(as_json=False):
        cache = Cache(default_root())
        toolbox = kept_toolbox(cache)
        if toolbox is not None:
            cache = toolbox.cache
        gone = prune.unused(cache, days)
        for kept in gone:
            click.echo(f"{size(kept.size):>9}  {kept.stage} {kept.key[:12]}")
        if not dry_run:
            prune.remove(cache, gone)
        total = sum(kept.size for kept in gone)
        click.echo(f"{size(total)} {'would be' if dry_run else 'are'} free again in {Path(cache.root)}.")
