"""The checks of `just check` are tests too, so that one command covers everything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]],
    ids=["format", "lint", "types"],
)
def test_checks_are_clean(command: list[str]) -> None:
    """Formatting, lint and strict types have nothing to say."""
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_project_speaks_of_itself_alone() -> None:
    """Tracked text carries no path of a developer's machine and no package host."""
    import re

    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(
        b"\0"
    )
    private = re.compile(rb"/(?:home|Users|work)/[a-z]|pythonhosted|pypi\.org|registry\.npmjs|deb\.debian\.")
    found = []
    for name in filter(None, files):
        path = ROOT / name.decode()
        if path.suffix in {
            ".py",
            ".md",
            ".toml",
            ".txt",
            ".html",
            ".css",
            ".js",
            ".service",
        } and path != Path(__file__):
            found += [
                f"{path.name}: {match.group().decode()}" for match in private.finditer(path.read_bytes())
            ]
    assert found == []
