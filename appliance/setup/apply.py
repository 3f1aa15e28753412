"""Putting the state into effect: the files that the system's programs read, and word to those that run."""

import contextlib
import grp
import json
import logging
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from appliance.setup import connection
from appliance.setup.code import new_code
from appliance.setup.places import Places
from appliance.setup.state import State, save, write

log = logging.getLogger(__name__)

CODE_GROUPS = 3
"""Groups of four letters in the device's code: 58 random bits, for it is a Wi-Fi password too."""

GROUP = "hob"
"""Who may read the name and the code: the service."""


def complete(places: Places, state: State) -> State:
    """The state with a code of its own, if it has none yet: made once, and kept."""
    if state.setup_code:
        return state
    state = msgspec.structs.replace(state, setup_code=new_code(CODE_GROUPS))
    save(places.state, state)
    return state


def keep_machine_id(places: Places) -> None:
    """Keep the id that systemd made at the first start: the initramfs puts it in place at all others."""
    kept = places.state / "machine-id"
    if kept.exists():
        return
    found = (places.root / "etc/machine-id").read_text().strip()
    if re.fullmatch("[0-9a-f]{32}", found):
        write(kept, f"{found}\n".encode(), 0o444)


def write_files(places: Places, state: State) -> None:
    """Write every file that follows from the state; those that are right already are left alone."""
    folder = places.state
    # JSON's strings are TOML's.
    settings = f"name = {json.dumps(state.host_name)}\nsetup_code = {json.dumps(state.setup_code)}\n"
    write(folder / "hob.toml", settings.encode(), 0o640, _group())
    _point(folder / "localtime", places.zones / state.timezone)
    keys = "".join(f"{key}\n" for key in state.ssh_keys)
    write(folder / "ssh/authorized_keys", keys.encode(), 0o600)
    name = connection.set_up_name(_read(folder / "machine-id"))
    connections = folder / "connections"
    _connection(connections, connection.CABLE, connection.cable())
    _connection(connections, connection.SET_UP, connection.set_up(name, state.setup_code))
    if state.wifi:
        _connection(connections, connection.WIFI, connection.wifi(state.wifi))
    else:
        (connections / f"{connection.WIFI}.nmconnection").unlink(missing_ok=True)


def host_keys(places: Places, state: State) -> None:
    """Make the device's own SSH key when the first key of its owner is there, and never before."""
    file = places.state / "ssh/ssh_host_ed25519_key"
    if not state.ssh_keys or file.exists():
        return
    new = file.with_name("new_host_key")
    for old in (new, new.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hob", "-f", str(new))
    new.with_name("new_host_key.pub").replace(file.with_suffix(".pub"))
    new.replace(file)


def tell_system(places: Places, state: State) -> None:
    """Have what runs take notice: the kernel of its name, the radio of its country, SSH, the time servers.

    What fails is logged: the rest is worth having all the same.
    """
    with _logged("the host name"):
        (places.root / "proc/sys/kernel/hostname").write_text(state.host_name)
    if state.country and places.has_radio:
        _run("iw", "reg", "set", state.country)
    _run("systemctl", "--no-block", "start" if state.ssh_keys else "stop", "hob-ssh.socket")
    servers = state.ntp if isinstance(state.ntp, list) else ["pool.ntp.org"] if state.ntp else []
    file = places.root / "run/systemd/timesyncd.conf.d/10-owner.conf"
    if servers:
        write(file, f"[Time]\nNTP={' '.join(servers)}\n".encode(), 0o644)
        _run("systemctl", "--no-block", "restart", "systemd-timesyncd.service")
    else:
        file.unlink(missing_ok=True)


def report(state: State) -> str:
    """What `hob-setup.txt` on the boot partition says: where Hob is, its code, and what was wrong."""
    lines = [
        f"This Hob is at http://{state.host_name}.local",
        "",
        f"Its code is {state.setup_code}",
        "It is asked for at the first visit, and it is the password of the Wi-Fi network that Hob opens",
        "where it finds no other.",
        "",
    ]
    if state.problems:
        lines += ["What was wrong with the settings on this partition:", *(f"- {p}" for p in state.problems)]
    else:
        lines += ["Nothing was wrong with the settings on this partition."]
    lines += ["", "Settings are changed in hob.toml, and read at the next start."]
    return "\n".join(lines) + "\n"


def note(state: State) -> str:
    """What the screen says of the settings; nothing while nothing is wrong."""
    return "".join(f"   {problem}\n" for problem in state.problems)


def _connection(folder: Path, name: str, text: str) -> None:
    write(folder / f"{name}.nmconnection", text.encode(), 0o600)


def _point(link: Path, target: Path) -> None:
    """Make a symbolic link point at `target`, by one rename."""
    with contextlib.suppress(OSError):
        if link.readlink() == target:
            return
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def _group() -> int:
    """The service's group; -1, which leaves the file root's, where there is none."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return -1


def _read(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text().strip()
    return ""


def _run(*command: str) -> None:
    """Run a program; what goes wrong is logged."""
    with _logged(" ".join(command[:2])):
        subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        log.error("%s: %s", what, error)
