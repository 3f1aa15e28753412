"""Where packages come from: what is named, else what this machine's apt uses."""

import os
from pathlib import Path

import pytest

from builder.errors import MirrorError
from builder.image.mirror import find_mirror

APT = """#!/bin/sh
# An apt as on a machine behind a proxy.
case "$1" in
    indextargets) printf '%s\\n' {addresses} ;;
    dump) printf '%s\\n' 'Acquire "";' 'Acquire::http "";' 'Acquire::http::Proxy "http://proxy.test:3128";' ;;
esac
"""


def apt(monkeypatch: pytest.MonkeyPatch, folder: Path, *addresses: str) -> None:
    """Put an apt with these archives, and no other, on the PATH."""
    for name in ("apt-get", "apt-config"):
        (folder / name).write_text(APT.format(addresses=" ".join(addresses)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")


def test_the_hosts_own_mirror_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first Debian archive among those it has, with the security archive beside it and its proxy."""
    apt(
        monkeypatch,
        tmp_path,
        "http://tools.test/apt/",
        "http://m.test/debian/",
        "http://m.test/debian-security/",
    )
    found = find_mirror()
    assert (found.url, found.security) == ("http://m.test/debian", "http://m.test/debian-security")
    assert found.options == ('Acquire::http::Proxy "http://proxy.test:3128"',)


def test_a_named_mirror_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--mirror` over HOB_MIRROR over the host's."""
    apt(monkeypatch, tmp_path, "http://m.test/debian/")
    monkeypatch.setenv("HOB_MIRROR", "http://env.test/debian/")
    assert find_mirror().url == "http://env.test/debian"
    assert find_mirror("http://flag.test/debian").url == "http://flag.test/debian"


def test_a_machine_without_debian_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other archives are not mistaken for Debian's."""
    apt(monkeypatch, tmp_path, "http://u.test/ubuntu/")
    with pytest.raises(MirrorError, match="names no Debian mirror") as caught:
        find_mirror()
    assert "--mirror" in caught.value.hint
    with pytest.raises(MirrorError, match=r"u\.test is no address"):
        find_mirror("u.test")


def test_sources_have_updates_and_security(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three lines, each signed by Debian's keyring."""
    apt(monkeypatch, tmp_path, "http://m.test/debian/")
    lines = find_mirror().sources("trixie", ("main", "non-free-firmware"))
    assert [line.split()[3] for line in lines] == ["trixie", "trixie-updates", "trixie-security"]
    assert all(line.endswith(" main non-free-firmware") and "[signed-by=/" in line for line in lines)
