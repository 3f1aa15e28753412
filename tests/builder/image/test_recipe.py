"""Recipes: those that come with Hob are sound, and a mistake in one's own is named with file and key."""

import re
import tomllib
from pathlib import Path

import pytest

from builder.errors import RecipeError
from builder.image import recipe

OWN = """
extends = "nuc"
title = "My box"
packages = ["htop", "-iw"]

[settings]
port = 8080

[disk]
root = 4096
"""


def written(folder: Path, text: str, name: str = "own.toml") -> str:
    """The path of a recipe with this text."""
    (folder / name).write_text(text)
    return str(folder / name)


def wrong(folder: Path, text: str) -> RecipeError:
    """The error of a recipe with this text."""
    with pytest.raises(RecipeError) as caught:
        recipe.load(written(folder, text))
    return caught.value


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_of_hobs_own_is_sound(name: str) -> None:
    """It loads, says what it is for, and compiles its models for processors of its architecture."""
    found = recipe.load(name)
    assert found.name == name
    assert found.title
    for target in found.targets:
        assert recipe.wrong_target(target, found) == ""


def test_devices_that_share_no_updates_have_no_compatible_string_in_common() -> None:
    """An update for one device must not be taken by another."""
    strings = [found.compatible for found in map(recipe.load, recipe.names()) if found.format == "disk"]
    assert len(strings) == len(set(strings))


def test_files_that_are_only_extended_are_not_listed() -> None:
    """`_debian` is the start of others and no device."""
    assert "nuc" in recipe.names()
    assert not [name for name in recipe.names() if name.startswith("_")]


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    """Lists add up, an entry with a hyphen takes one out, tables merge key by key, the rest is replaced."""
    nuc, own = recipe.load("nuc"), recipe.load(written(tmp_path, OWN))
    assert own.name == "own"
    assert own.title == "My box"
    assert {*own.packages} == {*nuc.packages, "htop"} - {"iw"}
    assert own.settings == nuc.settings | {"port": 8080}
    assert (own.disk.root, own.disk.boot) == (4096, nuc.disk.boot)
    assert own.compatible == nuc.compatible


def test_a_recipe_extends_one_beside_it(tmp_path: Path) -> None:
    """A path is taken from the folder of the recipe that names it."""
    written(tmp_path, OWN, "first.toml")
    own = recipe.load(written(tmp_path, 'extends = "first.toml"\ntitle = "Second"\n'))
    assert (own.title, own.disk.root) == ("Second", 4096)


def test_the_same_package_twice_is_one(tmp_path: Path) -> None:
    """What the base has already is not asked for twice."""
    own = recipe.load(written(tmp_path, 'extends = "nuc"\npackages = ["kmod"]\n'))
    assert own.packages.count("kmod") == 1
    assert own.wanted == sorted(set(own.wanted))


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ('extends = "nuc"\npackagse = []\n', "packagse", "no such key"),
        ('extends = "nuc"\n[disk]\nroots = 1\n', "disk.roots", "no such key"),
        ('extends = "nuc"\n[disk]\nroot = "big"\n', "disk.root", "expected int, got str"),
        ('extends = "nuc"\n[disk]\nroot = 4\n', "disk.root", "4 MiB is not between"),
        ('extends = "nuc"\npackages = [1]\n', "packages", "expected str, got int"),
        ('extends = "nuc"\npackages = ["Big Package"]\n', "packages", "Big Package is no name"),
        ('extends = "nuc"\narchitectures = ["riscv64"]\n', "architectures", "invalid enum value 'riscv64'"),
        ('extends = "nuc"\narchitectures = ["arm64"]\n', "architectures", "has one"),
        ('extends = "nuc"\nboot = "grub"\n', "boot", "invalid enum value 'grub'"),
        ('extends = "nuc"\nkernel = ""\n', "kernel", "needs one"),
        ('extends = "nuc"\ncompatible = "No Spaces"\n', "compatible", "lower-case"),
        ('extends = "nuc"\ntargets = ["aarch64-generic"]\n', "targets", "for aarch64"),
        ('extends = "nuc"\ntargets = ["x86_64-mmx"]\n', "targets", "x86_64-mmx"),
        ('extends = "nuc"\nremove = ["usr/share"]\n', "remove", "usr/share must be a path from the root"),
        ('extends = "nuc"\nremove = ["/*"]\n', "remove", "/* must be"),
        ('extends = "nuc"\nmodels = ["./none"]\n', "models", "mlc-chat-config.json"),
        ('extends = "nuc"\nname = "x"\n', "name", "named after its file"),
        ("extends = 5\n", "extends", "name or the path"),
        ('extends = "own.toml"\n', "extends", "circle"),
        ('architectures = ["amd64"]\n', "title", "is missing"),
        ('extends = "nuc"\n[imager]\ninit_format = "kickstart"\n', "imager.init_format", "kickstart"),
    ],
)
def test_an_error_names_file_and_key(tmp_path: Path, text: str, key: str, said: str) -> None:
    """One line: which file, which key, what is wrong with it."""
    message = str(wrong(tmp_path, text))
    assert message.startswith(f"{tmp_path / 'own.toml'}: {key}: "), message
    assert said in message


def test_a_misspelt_key_is_hinted_at(tmp_path: Path) -> None:
    """The key that was probably meant is named."""
    assert wrong(tmp_path, 'extends = "nuc"\npackagse = []\n').hint == "Did you mean packages?"


def test_an_error_names_the_file_that_has_the_key(tmp_path: Path) -> None:
    """In a chain of recipes it is the one where the value stands."""
    base = written(tmp_path, 'extends = "nuc"\n[disk]\nroot = 1\n', "base.toml")
    assert str(wrong(tmp_path, 'extends = "base.toml"\ntitle = "Own"\n')).startswith(f"{base}: disk.root: ")


def test_what_is_no_toml_is_said_with_its_line(tmp_path: Path) -> None:
    """The parser's own words, after the file."""
    message = str(wrong(tmp_path, 'title = "unclosed\n'))
    assert message.startswith(str(tmp_path / "own.toml"))
    assert "line 1" in message


@pytest.mark.parametrize("name", ["nucc", "../devices/nuc", "_nothing", "/etc/passwd"])
def test_an_unknown_name_lists_those_there_are(name: str) -> None:
    """No recipe is taken from outside by a name that is no `.toml`."""
    with pytest.raises(RecipeError, match="there is no recipe") as caught:
        recipe.load(name)
    assert "nuc" in caught.value.hint


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """The whole path, as it was looked for."""
    with pytest.raises(RecipeError, match=r"none\.toml does not exist"):
        recipe.load(str(tmp_path / "none.toml"))


def test_tables_are_written_as_toml() -> None:
    """What the image is told reads back as it was, with characters of every plane."""
    table = {"a": 'quo"te\n\\ ü 🏠', "b": [1, 2.5, True], "c": {"d": {"e": "f"}}, "g": -1}
    assert tomllib.loads(recipe.toml(table)) == table


def test_every_key_is_documented() -> None:
    """docs/images.md has a row for each key a recipe may have, and for nothing else."""
    keys = {"extends", *recipe.Recipe.__struct_fields__} - {"name", "disk", "imager"}
    keys |= {f"disk.{key}" for key in recipe.Disk.__struct_fields__}
    keys |= {f"imager.{key}" for key in recipe.Imager.__struct_fields__}
    text = (Path(__file__).parents[3] / "docs/images.md").read_text()
    table = text.split("| Key | What it says |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.M)
    assert {key for row in rows for key in re.findall(r"`([a-z_.]+)`", row)} == keys
