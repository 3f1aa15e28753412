"""Starts programs in namespaces, and sees them end: in time, and with all they started."""

import os
import pwd
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from builder.errors import CommandError, PrivilegeError
from builder.image.namespace import SETUP_FAILED, Spec, subordinate

RIGHTS = (
    "Run it as root, or give your user subordinate ids (usermod --add-subuids 100000-165535 --add-subgids "
    "100000-165535 NAME), install uidmap, and allow unprivileged user namespaces. A container must be a "
    "privileged one."
)

Line = Callable[[str], None]


def launch(
    spec: Spec, env: Mapping[str, str], stdin: int | IO[str], stdout: int, stderr: int
) -> subprocess.Popen[str]:
    """Start a program in namespaces, away from the terminal's signals: Ctrl-C reaches us, and we end it."""
    fixed = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "HOME": "/root",
        # Where this package lies, for the interpreter that makes the namespaces.
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.Popen(
        spec.command(),
        env=fixed | dict(env),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def finish(
    running: subprocess.Popen[str], program: str, timeout: float | None = None, line: Line | None = None
) -> str:
    """Wait for a program and return its standard output; it never outlives this call."""
    tail: deque[str] = deque(maxlen=30)

    def listen() -> None:
        assert running.stderr is not None
        for text in running.stderr:
            tail.append(text.rstrip())
            if line is not None:
                line(text.rstrip())

    assert running.stdout is not None
    listener = threading.Thread(target=listen, daemon=True)
    alarm = threading.Timer(timeout or 0, running.kill)
    try:
        listener.start()
        if timeout is not None:
            alarm.start()
        out = running.stdout.read()
        running.wait()
    finally:
        late = timeout is not None and alarm.finished.is_set()
        alarm.cancel()
        running.kill()
        running.wait()
        listener.join()
        for pipe in (running.stdout, running.stderr):
            if pipe is not None:
                pipe.close()
    last = tail[-1] if tail else ""
    if running.returncode == SETUP_FAILED and last.startswith("namespace: "):
        raise PrivilegeError(
            f"no namespaces can be made to run {program}: {last.removeprefix('namespace: ')}", hint=RIGHTS
        )
    if late and running.returncode != 0:
        raise CommandError(f"{program} did not end within {timeout:.0f} s and was stopped")
    if running.returncode != 0:
        told = "\n".join(list(tail)[-12:]) or out[-2000:].strip()
        raise CommandError(f"{program} failed with status {running.returncode}:\n{told}")
    return out


def rights() -> str:
    """What this process builds with, "root" or "a user namespace"; else raises `PrivilegeError`."""
    if os.geteuid() == 0:
        return "root"
    try:
        for path in (Path("/etc/subuid"), Path("/etc/subgid")):
            subordinate(path, pwd.getpwuid(os.geteuid()).pw_name)
    except LookupError as error:
        raise PrivilegeError(
            f"building an image needs root or a user namespace: {error}", hint=RIGHTS
        ) from error
    if shutil.which("newuidmap") is None:
        raise PrivilegeError(
            "building an image needs root or a user namespace: newuidmap is missing", hint=RIGHTS
        )
    return "a user namespace"
