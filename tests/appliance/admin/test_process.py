"""The administration as systemd starts it: a process of root's, with the socket that it was given."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.setup.places import Places
from appliance.setup.state import State, load, save
from tests.appliance.setup.device import KEY, make

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may be root's side"),
    pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd is not installed"),
]

CHECKOUT = Path(__file__).parents[3]
SECONDS = 30


@dataclass
class Admin:
    """A socket on which `python -m appliance.admin` waits, for a device in a temporary root."""

    path: Path
    places: Places
    called: Path
    log: Path

    def ask(self, message: object) -> list[dict[str, object]]:
        """Send a message; all that comes back."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SECONDS)
            connection.connect(str(self.path))
            connection.sendall(json.dumps(message).encode() + b"\n")
            with connection.makefile() as replies:
                return [json.loads(line) for line in replies]


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    """The process, started by its first request; systemctl is one that notes what it is asked."""
    places = make(tmp_path / "device")
    save(places.state, State(setup_code="K7WQ-3MZP-XR5T"))
    programs, called = tmp_path / "bin", tmp_path / "called"
    programs.mkdir()
    called.touch()
    (programs / "systemctl").write_text(f'#!/bin/sh\necho "$@" >>{called}\n')
    (programs / "systemctl").chmod(0o755)
    open_to_all = Path(tempfile.mkdtemp(prefix="hob-admin-"))  # pytest's own folders are closed to others
    open_to_all.chmod(0o755)
    path, log = open_to_all / "admin.sock", tmp_path / "log"
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOB_ROOT": str(places.root),
        "PYTHONPATH": str(CHECKOUT),
    }
    passed = [word for name in environment for word in ("-E", name)]
    with log.open("w") as complaints:
        process = subprocess.Popen(
            ["systemd-socket-activate", "-l", path, *passed, sys.executable, "-m", "appliance.admin"],
            env=environment | {"PATH": f"{environment['PATH']}:{os.environ['PATH']}"},
            stderr=complaints,
        )
    try:
        for _ in range(SECONDS * 50):
            if path.exists():
                break
            time.sleep(0.02)
        path.chmod(0o666)  # whoever gets here must still be somebody who may ask
        yield Admin(path, places, called, log)
    finally:
        process.terminate()
        process.wait(SECONDS)
        shutil.rmtree(open_to_all)


def test_root_changes_a_setting(admin: Admin) -> None:
    """The state has it, the unit that puts it into effect is restarted, and the log says who asked what."""
    assert admin.ask({"type": "set-ssh-keys", "keys": [f"  {KEY}  ", KEY]}) == [
        {"type": "done", "text": "SSH is on for these keys."}
    ]
    assert load(admin.places.state) == State(setup_code="K7WQ-3MZP-XR5T", ssh_keys=[KEY])
    assert admin.called.read_text() == "restart hob-setup.service\n"
    assert "user 0 asks: set-ssh-keys" in admin.log.read_text()


def test_a_new_name_starts_the_service_anew(admin: Admin) -> None:
    """After the settings are in effect, and without waiting: the service that asks is the one that ends."""
    admin.ask({"type": "set-host-name", "name": "kitchen"})
    assert admin.called.read_text().splitlines() == [
        "restart hob-setup.service",
        "--no-block restart hob.service",
    ]
    assert load(admin.places.state).host_name == "kitchen"


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        ({"type": "set-time-zone", "zone": "Mars"}, "invalid_value", "The time zone is none that is known"),
        ({"type": "set-ssh-keys", "keys": ["hello"]}, "invalid_value", "Key 1 is not one"),
        ({"type": "set-clock", "seconds": 5}, "invalid_value", "not a time of this century"),
        ({"type": "scan-wifi"}, "conflict", "no Wi-Fi"),
        ({"type": "run", "command": "id"}, "invalid_value", "Invalid value 'run'"),
    ],
)
def test_what_is_refused_changes_nothing(admin: Admin, message: object, code: str, said: str) -> None:
    """Each with a code and a sentence."""
    before = load(admin.places.state)
    (reply,) = admin.ask(message)
    assert (reply["type"], reply["code"]) == ("failed", code)
    assert said in str(reply["message"])
    assert load(admin.places.state) == before
    assert admin.called.read_text() == ""


@pytest.mark.skipif(
    not shutil.which("setpriv") or not Path("/usr/bin/python3").exists(),
    reason="setpriv or a Python for other users is not installed",
)
def test_another_user_is_refused_by_the_kernels_word(admin: Admin) -> None:
    """Whoever gets to the socket without being one of those who may ask hears so, and nothing happens."""
    code = (
        f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(admin.path)!r}); "
        """s.sendall(b'{"type":"reboot"}\\n'); print(s.makefile().read())"""
    )
    said = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", "/usr/bin/python3", "-c", code],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    ).stdout
    assert json.loads(said)["code"] == "forbidden"
    assert admin.called.read_text() == ""
    assert "refused: user 65534 may not ask" in admin.log.read_text()
