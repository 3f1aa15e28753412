"""The pages of the devices: commands exist as written, links lead somewhere, files for clusters fit."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml  # type: ignore[import-untyped]  # comes with huggingface-hub; its types are not among our packages

from appliance.cli import hob
from builder.errors import RecipeError
from builder.image import oci, recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs/devices.md", ROOT / "docs/containers.md", *sorted((ROOT / "docs/devices").glob("*.md"))]
DEVICES = sorted((ROOT / "docs/devices").glob("*.md"))


def named(page: Path) -> str:
    """A page's name for pytest."""
    return page.relative_to(ROOT).as_posix()


def fenced(page: Path, language: str) -> list[str]:
    """The blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def commands(page: Path) -> Iterator[list[str]]:
    """Every `hob …` on a page, in indented blocks and in running text, split into words."""
    text = re.sub(r"\\\n\s+", " ", page.read_text())
    lines = re.findall(r"^    (.+)$", text, re.M) + re.findall(r"`([^`\n]+)`", text)
    for line in lines:
        found = re.match(r"(?:sudo )?(?:docker exec hob )?(hob [a-z].*)", line)
        if found and not found[1].startswith("hob run"):
            yield shlex.split(found[1])[1:]


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words begin with, and the words after it."""
    command: click.Command = hob
    while isinstance(command, click.Group) and words:
        child = command.get_command(click.Context(command), words[0])
        assert child, f"there is no hob … {words[0]}"
        command, words = child, words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_are_real(page: Path) -> None:
    """Each names a verb that exists, options that it has, and a recipe that Hob comes with."""
    for words in commands(page):
        command, rest = resolve(words)
        assert not isinstance(command, click.Group), words
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, words
        if words[:2] == ["image", "build"] and not rest[0].endswith(".toml"):
            assert recipe.load(rest[0]).title


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    """To files that exist, and to headings on them."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        if "://" in target:
            continue
        other = page if not target else (page.parent / target).resolve()
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(), re.M)
            assert anchor in {slug(heading) for heading in headings}, f"{target}#{anchor}"


def slug(heading: str) -> str:
    """A heading's anchor, as forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", DEVICES, ids=named)
def test_a_page_leads_from_the_shop_to_the_first_answer(page: Path) -> None:
    """In two screens, saying what was and what was not tried."""
    text = page.read_text()
    assert len(text.splitlines()) <= 85
    for wanted in ("hob image build", "backup", "update", "first visit", "## What has been tried"):
        assert wanted in text.replace("First visit", "first visit"), wanted


def test_every_recipe_has_a_page() -> None:
    """And the index has every page."""
    index = (ROOT / "docs/devices.md").read_text()
    for name in recipe.names():
        try:
            recipe.load(name)
        except RecipeError:
            continue
        assert f"`{name}`" in index or f"hob image build {name}" in "".join(p.read_text() for p in DEVICES), (
            name
        )
    for page in DEVICES:
        assert f"(devices/{page.name})" in index


def test_the_compose_file_runs_the_image_as_it_is_made() -> None:
    """Its volume, read-only, without capabilities."""
    (text,) = (block for block in fenced(ROOT / "docs/containers.md", "yaml") if "services:" in block)
    file: dict[str, Any] = yaml.safe_load(text)
    service = file["services"]["hob"]
    assert set(file) == {"services", "volumes"}
    assert service["volumes"] == [f"hob:/{oci.DATA}"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["image"].startswith("localhost/hob:")
    assert set(file["volumes"]) == {"hob"}


def test_the_kubernetes_files_fit_together_and_the_image() -> None:
    """Labels select the pod, probes ask its port, the volume has the group; nothing else is writable."""
    (text,) = (block for block in fenced(ROOT / "docs/containers.md", "yaml") if "StatefulSet" in block)
    stateful, service = yaml.safe_load_all(text)
    assert (stateful["apiVersion"], stateful["kind"]) == ("apps/v1", "StatefulSet")
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    spec = stateful["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert spec["serviceName"] == service["metadata"]["name"]
    assert spec["replicas"] == 1
    ids = pod["securityContext"]
    assert ids["runAsUser"] == ids["runAsGroup"] == ids["fsGroup"] == oci.USER
    assert ids["runAsNonRoot"] is True
    (port,) = container["ports"]
    assert port["containerPort"] == oci.PORT
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert container["livenessProbe"]["tcpSocket"] == {"port": port["name"]}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (mount,) = container["volumeMounts"]
    (claim,) = spec["volumeClaimTemplates"]
    assert mount == {"name": claim["metadata"]["name"], "mountPath": f"/{oci.DATA}"}
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_example_of_a_recipe_is_one(tmp_path: Path) -> None:
    """With a model's folder where the page puts it."""
    (text,) = fenced(ROOT / "docs/containers.md", "toml")
    (model,) = tomllib.loads(text)["models"]
    folder = tmp_path / model
    folder.mkdir(parents=True)
    (folder / "mlc-chat-config.json").write_text("{}")
    (tmp_path / "family.toml").write_text(text)
    made = recipe.load(str(tmp_path / "family.toml"))
    assert made.format == "oci"
    assert made.models == ["guide", str(folder.resolve())]
