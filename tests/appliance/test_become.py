"""Root at the command line of a service: who it becomes, on a real folder, in a real process."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli.become import owner_of

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@needs_root
def test_whose_data_it_is(tmp_path: Path) -> None:
    """Root's own folders, and those that are not there, make nobody of root."""
    assert owner_of(tmp_path) is None
    assert owner_of(tmp_path / "nowhere") is None
    nobody = pwd.getpwnam("nobody")
    os.chown(tmp_path, nobody.pw_uid, nobody.pw_gid)
    found = owner_of(tmp_path)
    assert found is not None
    assert found.pw_name == "nobody"
    os.chown(tmp_path, 54_321, 54_321)  # a user that this machine does not know
    assert owner_of(tmp_path) is None


@needs_root
def test_what_a_command_becomes(tmp_path: Path) -> None:
    """User, group, umask and home are the owner's, and there is no way back."""
    nobody = pwd.getpwnam("nobody")
    os.chown(tmp_path, nobody.pw_uid, nobody.pw_gid)
    code = (
        "import os; from appliance.cli.become import become_owner; become_owner('image'); a = os.getuid()\n"
        "become_owner('key'); print(a, os.getresuid(), os.getresgid(), oct(os.umask(0)), os.environ['HOME'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOB_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    ids = (nobody.pw_uid,) * 3, (nobody.pw_gid,) * 3
    assert done.stdout.strip() == f"0 {ids[0]} {ids[1]} 0o77 {nobody.pw_dir}"


def test_an_engine_without_a_place() -> None:
    """`hob engine` says what it lacks, and what else there is."""
    done = subprocess.run(
        [sys.executable, "-m", "appliance.cli", "engine"],
        env={key: value for key, value in os.environ.items() if not key.startswith(("HOB_", "LISTEN_"))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "no socket to listen on" in done.stderr
    assert "--engine-socket" in done.stderr
