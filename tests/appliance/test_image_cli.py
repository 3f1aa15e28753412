"""`hob image list`, `show`, `plan`, `build` and `prune`, as a person runs them."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from builder.image import recipe
from tests.service import run_hob


def image(folder: Path, *arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """Run a verb with an empty cache: status, output, errors."""
    environment.setdefault("HOB_IMAGE_CACHE", str(folder / "cache"))
    done = run_hob(folder, "image", *map(str, arguments), **environment)
    return done.returncode, done.stdout, done.stderr


def test_list_names_every_device(tmp_path: Path) -> None:
    """A line for each, and the same for programs."""
    status, out, _ = image(tmp_path, "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:] if not line.startswith(" ")] == recipe.names()
    told = json.loads(image(tmp_path, "list", "--json")[1])
    assert [row["name"] for row in told] == recipe.names()


def test_show_prints_a_recipe_that_reads_back(tmp_path: Path) -> None:
    """As TOML it is a recipe again, with everything that was inherited."""
    status, out, _ = image(tmp_path, "show", "nuc")
    assert status == 0
    (tmp_path / "again.toml").write_text(out)
    again = recipe.load(str(tmp_path / "again.toml"))
    assert again.wanted == recipe.load("nuc").wanted
    assert tomllib.loads(out)["settings"]["port"] == 80
    assert json.loads(image(tmp_path, "show", "nuc", "--json")[1])["name"] == "nuc"


def test_plan_builds_nothing(tmp_path: Path) -> None:
    """With an empty cache every step is still to be done, and it stays empty."""
    status, out, errors = image(tmp_path, "plan", "nuc")
    assert (status, errors) == (0, "")
    stages = [line.split()[0] for line in out.splitlines()[1:] if not line.startswith(" ")]
    assert stages[0] == "tools"
    assert stages[-2:] == ["disk", "pack"]
    assert "kept" not in out
    assert not (tmp_path / "cache").exists()
    steps = json.loads(image(tmp_path, "plan", "nuc", "--fast", "--json")[1])
    assert steps[-1]["stage"] == "disk"
    assert steps[-1]["size"] == (256 + 2 * 2048 + 256) * 2**20


@pytest.mark.parametrize(
    ("verb", "text", "said"),
    [
        ("show", "[settings]\nprot = 80\n", "recipe own: settings.prot: there is no such setting"),
        ("plan", "[settings]\nport = 99999\n", "recipe own: settings.port: "),
        ("build", "[disk]\nroots = 1\n", "own.toml: disk.roots: there is no such key"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(tmp_path: Path, verb: str, text: str, said: str) -> None:
    """It names the key, and the settings are those that the service really has."""
    (tmp_path / "own.toml").write_text('extends = "nuc"\n' + text)
    status, out, errors = image(tmp_path, verb, tmp_path / "own.toml")
    assert (status, out) == (1, "")
    assert said in errors.splitlines()[0]
    assert not (tmp_path / "cache").exists()


def test_an_unknown_recipe_lists_those_there_are(tmp_path: Path) -> None:
    """Also as JSON for programs."""
    status, _, errors = image(tmp_path, "build", "nucc")
    assert status == 1
    assert errors.startswith("hob: there is no recipe nucc\n     Did you mean nuc? There are ")
    status, out, _ = image(tmp_path, "build", "nucc", "--json")
    assert json.loads(out)["error"] == "there is no recipe nucc"


def test_a_build_without_tools_or_mirror_says_what_is_missing(tmp_path: Path) -> None:
    """The first thing that is needed and not there, before anything is written."""
    if os.geteuid() != 0:
        pytest.skip("without root it is the rights that are missing first")
    (tmp_path / "bin").mkdir()
    status, _, errors = image(
        tmp_path, "build", "nuc", PATH=str(tmp_path / "bin"), HOB_MIRROR="http://127.0.0.1:9/debian"
    )
    assert status == 1
    assert "apt-get is missing" in errors.splitlines()[-2]
    assert "Debian" in errors.splitlines()[-1]


def test_a_mirror_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """With what else could be tried."""
    if os.geteuid() != 0:
        pytest.skip("without root it is the rights that are missing first")
    status, _, errors = image(tmp_path, "build", "nuc", "--mirror", "http://127.0.0.1:9/debian")
    assert status == 1
    assert "http://127.0.0.1:9/debian cannot be read" in errors
    assert "--mirror or HOB_MIRROR" in errors.splitlines()[-1]
    assert list((tmp_path / "cache/stages").glob("*/*")) == []


def test_prune_of_an_empty_cache_frees_nothing(tmp_path: Path) -> None:
    """And says so."""
    status, out, errors = image(tmp_path, "prune")
    assert (status, errors) == (0, "")
    assert out == f"0 kB are free again in {tmp_path / 'cache'}.\n"
