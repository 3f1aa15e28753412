"""A real `hob serve` for tests: started, watched, stopped or killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.shipped import GUIDE, GUIDE_DIRECTORY

GOLDEN = Path(__file__).parent / "golden"
TINY = "tiny"
"""A model with random weights: 0.5 MB, fast, and its answers are nonsense that never ends by itself."""

ENDLESS = 2**16
"""Its context window. With HOB_CONTEXT as large an answer takes minutes: who sees it end has ended it."""

MODEL = GUIDE if GUIDE_DIRECTORY.is_dir() else TINY
"""The model that tests talk to: the built-in one."""

HOB = str(Path(sys.executable).with_name("hob"))

START_SECONDS = 120
STOP_SECONDS = 20


@dataclass
class Hob:
    """A running service. `url` has no slash at its end; `out` and `log` are its standard output and error."""

    process: subprocess.Popen[bytes]
    url: str
    data_dir: Path
    out: Path
    log: Path
    killed: bool = field(default=False)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON body of a GET."""
        return self._exchange(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON body of a POST; `body` as JSON, or as it is if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        return self._exchange(urllib.request.Request(self.url + path, data, headers))

    def engine_pid(self) -> int:
        """Process id of the engine, which is the service's child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            if b"appliance.engine.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError(f"no engine among the children {children}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it as systemd or a person would; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """Pull the plug."""
        self.killed = True
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def complaints(self) -> str:
        """Tracebacks and warnings of Python in the log; "" when all is well."""
        log = self.log.read_text()
        return log if re.search(r"Traceback|Warning:|never retrieved|never awaited", log) else ""

    def _exchange(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """The environment of a `hob` command that sees no settings but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOB_")}
    configuration = {"XDG_CONFIG_HOME": str(data_dir / "no-config"), "HOB_DATA_DIR": str(data_dir)}
    return {**kept, **configuration, "PYTHONWARNINGS": "default", **settings}


def start(data_dir: Path, *flags: str, ready: bool = True, **settings: str) -> Hob:
    """Start `hob serve` on a free port of 127.0.0.1 and wait until it has said where it is.

    `ready`: also insist that the default model is loaded.
    """
    number = len(list(data_dir.glob("*.out")))
    out, log = data_dir / f"{number}.out", data_dir / f"{number}.log"
    command = [HOB, "serve", "--port", "0", *flags]
    settings = {"HOB_MODEL": MODEL, **settings}
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, env=environment(data_dir, **settings)
        )
    deadline = time.monotonic() + START_SECONDS
    while not (found := re.search(r"^Hob is at (?:.* or )?(http://\S+)$", out.read_text(), re.MULTILINE)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"hob serve did not start:\n{log.read_text()}")
        time.sleep(0.02)
    hob = Hob(process, found[1], data_dir, out, log)
    if ready:
        status, health = hob.get("/healthz")
        assert status == 200, f"{health}\n{log.read_text()}"
    return hob


def run_hob(
    data_dir: Path, *arguments: str, stdin: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a `hob` command to its end."""
    return subprocess.run(
        [HOB, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(data_dir, **settings),
        timeout=START_SECONDS,
        check=False,
    )
