"""The documentation cannot drift: settings, commands, routes and links are compared with the code."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from appliance.cli import hob
from appliance.config import Settings
from appliance.hardware.memory import ENGINE_OVERHEAD, SERVICE_OVERHEAD
from appliance.library.catalogue import catalogue
from appliance.upstream.settings import Upstream

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings_table() -> str:
    """The table of docs/settings.md as the code would have it."""
    rows = ["| Key in `hob.toml` | Variable | Default | What it does |", "| --- | --- | --- | --- |"]
    for key, field in Settings.model_fields.items():
        default = "the XDG data folder, `hob` in it" if key == "data_dir" else f"`{_toml(field.default)}`"
        rows.append(f"| `{key}` | `HOB_{key.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def fit_table() -> str:
    """The table of docs/models.md: how much context each model of the catalogue has room for."""
    sizes = (4, 8, 16)
    rows = [
        "| Model | Weights | A thousand tokens | " + " | ".join(f"{size} GB" for size in sizes) + " |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model in catalogue():
        cells = []
        for size in sizes:
            # The system and its own programs take 0.8 GB.
            room = size * 2**30 - 8 * 10**8 - ENGINE_OVERHEAD - SERVICE_OVERHEAD - model.weights
            tokens = min(model.context, room // model.cache) // 1024
            cells.append(f"{tokens} k" if tokens > 0 else "no")
        cells = [model.name, f"{model.weights / 1e9:.1f} GB", f"{model.cache / 1e6 * 1000:.0f} MB", *cells]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def test_what_fits_is_reckoned_from_the_catalogue() -> None:
    """docs/models.md has exactly the table that the catalogue's figures yield."""
    assert fit_table() in (ROOT / "docs/models.md").read_text(), f"it should read\n\n{fit_table()}\n"


def commands(group: click.Command, path: str = "hob") -> Iterator[tuple[str, click.Command]]:
    """Every command below a group by its full name."""
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            child = group.get_command(context, name)
            assert child, f"{path} {name} does not load"
            yield from commands(child, f"{path} {name}")
    else:
        yield path, group


def test_every_setting_is_documented() -> None:
    """docs/settings.md has exactly the table that the settings class yields."""
    assert settings_table() in (ROOT / "docs/settings.md").read_text(), (
        f"it should read\n\n{settings_table()}\n"
    )


def test_every_field_of_an_upstream_is_documented() -> None:
    """docs/engines.md has a row for every field of `upstreams`, with the description the class yields."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", (ROOT / "docs/engines.md").read_text(), re.M)
    assert {name: text for name, _, text in rows} == {
        name: field.description for name, field in Upstream.model_fields.items()
    }
    for name, default, _ in rows:
        value = Upstream.model_fields[name].default
        assert default == f"`{value}`" or not isinstance(value, int)


@pytest.mark.parametrize(
    ("name", "command"), [*commands(hob)], ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_is_documented(name: str, command: click.Command) -> None:
    """docs/commands.md has a section for every command that names each of its options and arguments."""
    text = (ROOT / "docs/commands.md").read_text()
    match = re.search(rf"^## `{re.escape(name)}[` ](.*?)(?=^## |\Z)", text, re.M | re.S)
    assert match, f"docs/commands.md has no section '## `{name} …`'"
    section = match.group()
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert max(parameter.opts, key=len) in section, f"{name}: {parameter.opts} is missing"
        elif isinstance(parameter, click.Argument):
            assert (parameter.metavar or (parameter.name or "").upper()) in section, (
                f"{name}: {parameter.name}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures point at files that exist."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_ci_runs_the_line_of_the_readme() -> None:
    """What a person is told to run is what is run for every change."""
    line = "pip install rust-just && just test"
    assert line in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci/run").read_text().rstrip().endswith(line)


def test_the_readme_starts_with_the_line_that_does_everything() -> None:
    """One line sets everything up and serves."""
    assert "pip install rust-just && just serve" in (ROOT / "README.md").read_text()


def _toml(value: object) -> str:
    """A default as one would write it in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)
