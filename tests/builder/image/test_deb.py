"""The Debian package's parts that need no Debian: versions, and what dpkg is told."""

from pathlib import Path

import pytest

from builder.errors import FormatError
from builder.image import deb


@pytest.mark.parametrize(
    ("version", "debian"),
    [
        ("0.1.0", "0.1.0"),
        ("1.2.0rc1", "1.2.0~rc1"),
        ("1.2.dev3", "1.2~dev3"),
        ("1.0.post2+a.1", "1.0+post2+a.1"),
    ],
)
def test_versions(version: str, debian: str) -> None:
    """What comes before a release is less than it, as Debian compares."""
    assert deb.debian_version(version) == debian


def test_no_version() -> None:
    """What Python would not take is refused by name."""
    with pytest.raises(FormatError, match="'latest' is no version"):
        deb.debian_version("latest")


def test_what_dpkg_is_told(tmp_path: Path) -> None:
    """Settings are configuration files, a compiler needs a linker, and no placeholder is left in a script."""
    (tmp_path / "etc/hob").mkdir(parents=True)
    (tmp_path / "etc/hob/hob.toml").write_text("port = 80\n")
    deb.control(tmp_path, "arm64", "0.1.0", compiler=True)
    control = (tmp_path / "DEBIAN/control").read_text()
    assert "Architecture: arm64\n" in control
    assert ", binutils\n" in control
    assert (tmp_path / "DEBIAN/conffiles").read_text() == "/etc/hob/hob.toml\n"
    for script in ("postinst", "prerm", "postrm"):
        assert "@" not in (tmp_path / "DEBIAN" / script).read_text().replace('"$@"', "")
