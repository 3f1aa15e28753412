"""Locks of packages: written and read without loss, and never taken for what they are not."""

from dataclasses import replace as _replace
from pathlib import Path

import msgspec
import pytest

from builder.errors import FormatError, MirrorError, RecipeError
from builder.image import packages, recipe, stages
from builder.image.cache import Cache
from builder.image.mirror import Mirror
from builder.image.packages import Lock, Package

MIRROR = Mirror("http://mirror.test/debian", "http://mirror.test/debian-security")
PACKAGES = [
    Package("libc6", "2.41-12+deb13u4", "amd64", 2846000, "a" * 64, "pool/main/g/glibc/libc6.deb"),
    Package("wpasupplicant", "2:2.10-24", "amd64", 1426000, "b" * 64, "pool/main/w/wpa/wpa.deb", True),
]
LOCK = Lock("trixie", "amd64", ["libc6", "wpasupplicant"], 1795227046, PACKAGES)


def test_a_lock_survives_being_written() -> None:
    """What is read is what was written, and the same lock is the same text."""
    text = packages.dump(LOCK)
    assert packages.parse(text, Path("x")) == LOCK
    assert packages.dump(packages.parse(text, Path("x"))) == text
    assert len(text.splitlines()) == 9 + len(PACKAGES)
    assert packages.parse(text.replace('tools = ""\n', ""), Path("x")) == LOCK


@pytest.mark.parametrize(
    ("before", "after"),
    [("format = 1", "format = 2"), ("epoch = 1795227046", ""), ("size = 2846000", 'size = "x"'), ("]", "")],
)
def test_a_damaged_lock_is_named(before: str, after: str) -> None:
    """The file, and what is wrong with it."""
    with pytest.raises(FormatError, match=r"^my\.toml is no lock file of an image: "):
        packages.parse(packages.dump(LOCK).replace(before, after), Path("my.toml"))


def test_lines_of_apt_become_packages() -> None:
    """Name, version with its epoch, and the path below the mirror it comes from; a plus sign stays one."""
    line = (
        "'http://mirror.test/debian/pool/main/w/wpa/wpasupplicant_2.10-24%2bdeb13u1_amd64.deb' "
        "wpasupplicant_2%3a2.10-24+deb13u1_amd64.deb 1426000 SHA256:" + "c" * 64
    )
    found = packages.parse_uri(line, MIRROR)
    assert found == Package(
        "wpasupplicant",
        "2:2.10-24+deb13u1",
        "amd64",
        1426000,
        "c" * 64,
        "pool/main/w/wpa/wpasupplicant_2.10-24+deb13u1_amd64.deb",
    )
    assert found.file == "wpasupplicant_2%3a2.10-24+deb13u1_amd64.deb"
    assert packages.parse_uri(line.replace("/debian/", "/debian-security/"), MIRROR).security


def test_a_package_without_a_strong_hash_is_refused() -> None:
    """MD5 alone proves nothing."""
    line = "'http://mirror.test/debian/pool/x.deb' x_1_all.deb 10 MD5Sum:" + "d" * 32
    with pytest.raises(MirrorError, match="without its SHA-256"):
        packages.parse_uri(line, MIRROR)


def test_errors_of_apt_are_told_in_its_own_words() -> None:
    """Its errors, or else its warnings, without the letters before them; not all that it said."""
    said = "apt-get failed with status 100:\nGet:1 http://x\nE: Unable to locate package hobbit\nE: Other"
    assert packages.last(said) == "Unable to locate package hobbit Other"
    assert packages.last("apt-get failed with status 1:\nW: Old\nE: No") == "No"
    assert packages.last("apt-get failed with status 1:\nW: Old") == "Old"
    assert packages.last("apt-get failed with status 1:\nkilled") == "killed"


def order(folder: Path, **changes: object) -> stages.Order:
    """An order for the recipe of the lock above."""
    nuc = msgspec.structs.replace(
        recipe.load("nuc"), packages=["libc6", "wpasupplicant"], firmware=[], kernel="", compiler=False
    )
    return _replace(stages.Order(recipe=nuc, version="1", lock=folder / "lock.toml"), **changes)  # type: ignore[arg-type]


def test_a_lock_of_another_recipe_is_refused(tmp_path: Path) -> None:
    """The packages that differ are named, and what to do."""
    cache = Cache(tmp_path)
    (tmp_path / "lock.toml").write_text(packages.dump(LOCK))
    assert stages.locked(order(tmp_path), "amd64", cache) == LOCK
    other = order(
        tmp_path, recipe=msgspec.structs.replace(order(tmp_path).recipe, packages=["libc6", "nano"])
    )
    with pytest.raises(
        RecipeError, match=r"lock\.toml was made for other packages .*: nano, wpasupplicant"
    ) as caught:
        stages.locked(other, "amd64", cache)
    assert "--update" in caught.value.hint
    assert stages.locked(_replace(other, update=True), "amd64", cache) is None


def test_without_a_lock_file_the_cache_remembers(tmp_path: Path) -> None:
    """A lock for each set of packages; another set asks the mirror."""
    cache, asked = Cache(tmp_path), order(tmp_path, lock=None)
    assert stages.locked(asked, "amd64", cache) is None
    path = stages.lock_path(asked, "amd64", cache)
    path.parent.mkdir()
    path.write_text(packages.dump(LOCK))
    assert stages.locked(asked, "amd64", cache) == LOCK
    more = _replace(asked, recipe=msgspec.structs.replace(asked.recipe, packages=["libc6", "nano"]))
    assert stages.locked(more, "amd64", cache) is None


def test_a_recipe_for_several_architectures_has_a_lock_for_each(tmp_path: Path) -> None:
    """`--lock hob.toml` names `hob.amd64.toml` and `hob.arm64.toml`."""
    oci = stages.Order(recipe=recipe.load("oci"), version="1", lock=tmp_path / "hob.toml")
    names = [stages.lock_path(oci, each, Cache(tmp_path)).name for each in oci.recipe.architectures]
    assert names == ["hob.amd64.toml", "hob.arm64.toml"]


def test_missing_packages_are_those_not_kept(tmp_path: Path) -> None:
    """A package lies under its hash."""
    cache = Cache(tmp_path)
    assert packages.missing(LOCK, cache) == PACKAGES
    path = packages.kept(PACKAGES[0], cache)
    path.parent.mkdir(parents=True)
    path.touch()
    assert packages.missing(LOCK, cache) == PACKAGES[1:]


def test_the_date_of_a_release_file_is_the_images_time() -> None:
    """RFC 5322, always UTC in Debian's archives."""
    assert packages.release_date("Origin: Debian\nDate: Sat, 21 Nov 2026 02:10:46 UTC\n") == 1795227046
    assert packages.release_date("Origin: Debian\n") == 0
