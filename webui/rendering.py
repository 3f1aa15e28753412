"""Pages to HTML by Jinja: escaped always, and nothing printed that a page does not declare."""

from dataclasses import fields
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from webui import assets
from webui.pages import Page

environment: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
environment.globals["static"] = assets.url


def to_html(page: Page) -> str:
    """Print a page with its own template."""
    context = {field.name: getattr(page, field.name) for field in fields(page)}
    return environment.get_template(page.template).render(context)
