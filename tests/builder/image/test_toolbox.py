"""Programs of the toolbox: what they see of this machine, how they end, and what is said when they fail."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.errors import CommandError
from builder.image.cache import Cache, default_root
from builder.image.toolbox import Toolbox, host_architecture, kept_toolbox

# Read before the tests forget what the person running them has set.
CACHE = Cache(default_root())


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    """The real one, if a build has made it."""
    found = kept_toolbox(CACHE)
    if found is None:
        pytest.skip("the image builder's tools are not installed; `hob image build` makes them")
    return found


@pytest.fixture
def scratch(toolbox: Toolbox) -> Iterator[Path]:
    """A folder that programs may write in."""
    with toolbox.scratch("test") as folder:
        yield folder


def alive(marker: str) -> bool:
    """Whether a process with this among its arguments runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue  # it has ended meanwhile
    return False


def test_a_program_runs_in_debian_13(toolbox: Toolbox) -> None:
    """Whatever this machine is."""
    assert "trixie" in toolbox.run(["cat", "/etc/os-release"])


def test_it_sees_only_what_it_is_shown(toolbox: Toolbox, tmp_path: Path) -> None:
    """Paths appear at the same place; nothing beside them does, and `/root` and `/home` are empty."""
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    for folder in (shown, hidden):
        folder.mkdir()
        (folder / "file").write_text("here")
    assert toolbox.run(["cat", shown / "file"], read=[shown]) == "here"
    with pytest.raises(CommandError, match="No such file"):
        toolbox.run(["cat", hidden / "file"], read=[shown])
    assert toolbox.run(["ls", "-A", "/root", "/home"]).split() == ["/home:", "/root:"]


def test_what_is_read_cannot_be_written(toolbox: Toolbox, scratch: Path) -> None:
    """Nor can the toolbox itself; a writable folder within a readable one can."""
    (scratch / "inner").mkdir()
    for path in (scratch / "file", Path("/usr/file"), Path("/etc/file"), Path("/var/file")):
        with pytest.raises(CommandError, match="Read-only"):
            toolbox.run(["touch", path], read=[scratch], write=[scratch / "inner"])
    toolbox.run(["touch", scratch / "inner/file"], read=[scratch], write=[scratch / "inner"])
    assert (scratch / "inner/file").exists()


def test_there_is_no_network_unless_asked_for(toolbox: Toolbox) -> None:
    """An empty network namespace has the loopback device alone; with the host's, there are the host's."""

    def devices(text: str) -> set[str]:
        return {line.split(":")[0].strip() for line in text.splitlines()[2:]}

    assert devices(toolbox.run(["cat", "/proc/net/dev"])) == {"lo"}
    host = devices(Path("/proc/net/dev").read_text())
    assert devices(toolbox.run(["cat", "/proc/net/dev"], network=True)) == host


def test_nothing_of_the_callers_surroundings_is_passed_on(
    toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locale, time zone and variables are always the same, so the results are."""
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("HOB_SECRET", "x")
    told = toolbox.run(["env"], env={"OWN": "1"})
    assert "LC_ALL=C.UTF-8" in told
    assert "TZ=UTC" in told
    assert "OWN=1" in told
    assert "HOB_SECRET" not in told
    assert "LANG=" not in told


def test_text_goes_in_and_comes_out(toolbox: Toolbox) -> None:
    """Also more than a pipe holds, both ways at once."""
    text = "line\n" * 100_000
    assert toolbox.run(["cat"], stdin=text) == text


def test_a_failure_ends_with_what_the_program_said(toolbox: Toolbox) -> None:
    """Program, status and its last lines."""
    with pytest.raises(CommandError) as caught:
        toolbox.run(["sh", "-c", "echo early; echo the reason >&2; exit 3"])
    assert str(caught.value) == "sh failed with status 3:\nthe reason"
    with pytest.raises(CommandError, match="nosuchprogram: No such file"):
        toolbox.run(["nosuchprogram"])


def test_lines_are_told_as_they_come(toolbox: Toolbox) -> None:
    """What the program writes to standard error, line by line."""
    told: list[str] = []
    toolbox.run(["sh", "-c", "echo one >&2; echo out; echo two >&2"], line=told.append)
    assert told == ["one", "two"]


def test_a_program_is_stopped_in_time_with_all_it_started(toolbox: Toolbox) -> None:
    """Also what has put itself into the background."""
    with pytest.raises(CommandError, match="sh did not end within 1 s"):
        toolbox.run(["sh", "-c", "setsid sleep 98.7654 & sleep 98.7654"], timeout=1)
    wait_until_gone("98.7654")


def test_killing_the_starter_kills_everything(toolbox: Toolbox) -> None:
    """As the plug pulled from a machine: nothing in the namespaces goes on."""
    running = toolbox.start(["sh", "-c", "setsid sleep 97.6543 & echo up; sleep 97.6543"])
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.readline() == "up\n"
    running.kill()
    running.wait()
    running.stdout.close()
    running.stderr.close()
    wait_until_gone("97.6543")


def wait_until_gone(marker: str) -> None:
    """The kernel kills what is in a namespace right after its first process."""
    for _ in range(600):
        if not alive(marker):
            return
        time.sleep(0.1)
    raise AssertionError(f"a process with {marker} goes on")


def test_nothing_is_mounted_afterwards(toolbox: Toolbox, scratch: Path) -> None:
    """The mounts are the program's own and end with it."""
    before = Path("/proc/self/mounts").read_text()
    toolbox.run(["ls", scratch], write=[scratch], foreign="")
    assert Path("/proc/self/mounts").read_text() == before


def test_programs_of_another_processor_run(toolbox: Toolbox, scratch: Path) -> None:
    """By an emulator that is registered for this program alone: the host's own register stays as it is."""
    if host_architecture() != "amd64":
        pytest.skip("the program below is for arm64, which this machine is")
    # The smallest program for 64-bit Arm: exit(7), by system call 93.
    code = bytes.fromhex("a80b8052e0008052010000d4")
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + (183).to_bytes(2, "little")
        + (1).to_bytes(4, "little") + (0x400078).to_bytes(8, "little") + (64).to_bytes(8, "little")
        + bytes(8) + bytes(4) + (64).to_bytes(2, "little") + (56).to_bytes(2, "little")
        + (1).to_bytes(2, "little") + bytes(6)
    )  # fmt: skip
    size = len(header) + 56 + len(code)
    segment = (
        (1).to_bytes(4, "little") + (5).to_bytes(4, "little") + bytes(8)
        + (0x400000).to_bytes(8, "little") * 2
        + size.to_bytes(8, "little") * 2 + (0x10000).to_bytes(8, "little")
    )  # fmt: skip
    program = scratch / "arm"
    program.write_bytes(header + segment + code)
    program.chmod(0o755)
    with pytest.raises(CommandError, match="status 7"):
        toolbox.run([program], read=[scratch], foreign="arm64")
    with pytest.raises(CommandError, match="Exec format error"):
        toolbox.run([program], read=[scratch])


def test_what_a_program_wrote_can_be_removed(toolbox: Toolbox, scratch: Path) -> None:
    """Whoever owns it, also folders that nobody may enter."""
    script = 'mkdir -p "$1/a/b"; touch "$1/a/b/c"; chown -R 33:33 "$1/a"; chmod 0 "$1/a/b"'
    toolbox.run(["sh", "-ec", script, "-", scratch], write=[scratch])
    toolbox.remove(scratch / "a")
    assert not (scratch / "a").exists()


def test_an_ordinary_user_without_subordinate_ids_is_told_so(tmp_path: Path) -> None:
    """One line with what is missing, and how to get it."""
    if os.geteuid() != 0:
        pytest.skip("takes root, to become somebody else")
    code = (
        "import os; os.setgid(65534); os.setuid(65534)\n"
        "from builder.errors import PrivilegeError\n"
        "from builder.image.process import rights\n"
        "try: rights()\n"
        "except PrivilegeError as error: print(error, '|', error.hint)\n"
    )
    # Read before it becomes somebody who may not read this folder.
    done = subprocess.run(
        [sys.executable, "-c", f"import builder.image.toolbox, pwd\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "needs root or a user namespace: /etc/subuid gives nobody no subordinate ids |" in done.stdout
    assert "usermod --add-subuids" in done.stdout
