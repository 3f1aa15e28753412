"""The units at work: systemd starts them, a question is answered, and again when one of them was killed."""

import os
import re
import shutil
import signal
from collections.abc import Iterator

import pytest

from builder.errors import MirrorError, PrivilegeError, ToolMissingError
from builder.image import overlay
from builder.image.cache import Cache, default_root
from builder.image.toolbox import host_architecture, open_toolbox
from tests.service import GOLDEN, TINY
from tests.systemd.container import Container, booted

pytestmark = pytest.mark.image

WANTED = not {"pc", "running"}.isdisjoint(os.environ.get("HOB_TEST_IMAGES", "").replace(",", " ").split())
CACHE = Cache(default_root())
LEVELS = {
    "amd64": ["x86_64-avx512vnni", "x86_64-avx2", "x86_64-generic"],
    "arm64": ["aarch64-neondot", "aarch64-generic"],
}


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A booted system with Hob and its compiler, whose service says that it is ready."""
    if not WANTED:
        pytest.skip("HOB_TEST_IMAGES does not ask for running: `just test-images` does")
    if os.geteuid() != 0 or shutil.which("nsenter") is None:
        pytest.skip("booting in namespaces needs root and nsenter")
    try:
        toolbox = open_toolbox(CACHE)
    except (PrivilegeError, MirrorError, ToolMissingError) as error:
        pytest.skip(f"no toolbox: {error}")
    contents = overlay.Contents(
        arch=host_architecture(),
        version="0.1.0",
        epoch=1_767_225_600,
        targets=LEVELS[host_architecture()],
        compiler=True,
        settings='data_dir = "/var/lib/hob"\nlan = true\nport = 80\n',
    )
    layers = [overlay.build(contents, CACHE, toolbox), toolbox.tree]
    with booted(layers, tmp_path_factory.mktemp("system")) as container:
        container.wait("hob.service", "ActiveState", "active")
        yield container


@pytest.fixture(scope="module")
def key(container: Container) -> str:
    """An API key, made by root on the device's command line."""
    found = re.search(r"hob-\S+|hob_\S+", container.run("hob", "key", "add", "test"))
    assert found
    return found[0]


def answered(container: Container, key: str, model: str = "") -> None:
    """The service answers a question."""
    reply = container.ask(key, model)
    assert reply.get("choices", [{}])[0].get("message", {}).get("content"), reply


def test_both_start_and_answer(container: Container, key: str) -> None:
    """The service says so itself when it can answer; nothing had to be compiled."""
    container.wait("hob.service", "StatusText", "hob-guide answers")
    assert container.show("hob-engine.service", "ActiveState") == "active"
    answered(container, key)
    assert container.run("find", "/var/lib/hob/libraries", "-name", "*.so") == ""


def test_what_root_does_belongs_to_the_service(container: Container, key: str) -> None:
    """`hob` as root works on the service's data, as the service's user; others cannot look in."""
    assert "test" in container.run("hob", "key", "list")
    assert container.run("find", "/var/lib/hob", "!", "-user", "hob") == ""
    assert container.run("stat", "-c", "%a %U", "/var/lib/hob").split() == ["700", "hob"]


def test_what_the_engine_can_reach(container: Container) -> None:
    """No network, no capability, no data but models and libraries, and those only to read."""
    pid = container.show("hob-engine.service", "MainPID")
    status = container.run("cat", f"/proc/{pid}/status")
    for line in ("Uid:\t641\t641\t641\t641", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    inside = ("nsenter", f"--target={pid}", "--mount", "--net")
    assert container.run(*inside, "ls", "/var/lib/hob").split() == ["libraries", "models"]
    assert "Read-only" in container.run(*inside, "touch", "/var/lib/hob/models/x", check=False)
    assert container.run(*inside, "ls", "/sys/class/net", check=False).split() in (["lo"], [])
    routes = container.run(*inside, "cat", "/proc/self/net/route").splitlines()
    assert len(routes) <= 1  # the heading
    assert container.run("stat", "-c", "%a %U %G", "/run/hob-engine/engine.sock").split() == [
        "600",
        "hob",
        "hob",
    ]


def test_a_model_that_must_be_compiled(container: Container, key: str) -> None:
    """The service compiles what did not come with the system, and the engine, another user, can read it."""
    shutil.copytree(GOLDEN / "llama3rope/q4f16_1", f"/proc/{container.init}/root/var/lib/hob/models/{TINY}")
    container.run("chown", "-R", "hob:hob", "/var/lib/hob/models")
    answered(container, key, TINY)
    assert container.run("find", "/var/lib/hob/libraries", "-name", "*.so")
    answered(container, key, "hob-guide")


def test_the_engine_is_killed(container: Container, key: str) -> None:
    """It starts again by itself, and the next question is answered by the same service."""
    service = container.show("hob.service", "MainPID")
    container.new_process("hob-engine.service", container.kill("hob-engine.service"))
    answered(container, key)
    assert container.show("hob.service", "MainPID") == service


def test_the_service_is_killed(container: Container, key: str) -> None:
    """It starts again by itself and finds the engine as it left it."""
    engine = container.show("hob-engine.service", "MainPID")
    container.new_process("hob.service", container.kill("hob.service"))
    answered(container, key)
    assert container.show("hob-engine.service", "MainPID") == engine


def test_the_service_hangs(container: Container, key: str) -> None:
    """A service that gives no sign of life is ended by systemd, and starts again."""
    folder = "/run/systemd/system/hob.service.d"
    container.run("mkdir", "-p", folder)
    quick = "[Service]\\nWatchdogSec=4\\nTimeoutStopSec=2\\nTimeoutAbortSec=2\\n"
    container.run("sh", "-c", f"printf '{quick}' > {folder}/quick.conf")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "restart", "hob.service")
    answered(container, key)
    container.new_process("hob.service", container.kill("hob.service", signal.SIGSTOP))
    assert "atchdog" in container.run("journalctl", "--no-pager", "-u", "hob.service", "-n", "30")
    answered(container, key)


def test_both_stop_cleanly(container: Container) -> None:
    """Stopping is no failure, and leaves no process and no socket."""
    units = ("hob.service", "hob-engine.service", "hob-engine.socket")
    container.run("systemctl", "stop", *units)
    assert {container.show(unit, "Result") for unit in units} == {"success"}
    assert container.show("hob.service", "ExecMainStatus") == "0"
    assert {container.show(unit, "ControlGroup") for unit in units} == {""}
    assert "engine.sock" not in container.run("ls", "/run/hob-engine", check=False).split()


def test_the_administration_is_there_again_and_again(container: Container, key: str) -> None:
    """It is started by a request, ends when it has nothing to do, and the next request starts it anew."""
    ask = (
        "import asyncio\n"
        "from appliance.admin import client\n"
        "from appliance.admin.messages import DescribeUpdates, Updates\n"
        "try:\n    asyncio.run(client.ask(DescribeUpdates(), Updates))\n"
        "except Exception as error:\n    print(error)\n"
    )
    container.run("systemctl", "start", "hob-admin.socket")
    for _ in range(2):
        said = container.run(
            "systemd-run", "--wait", "--pipe", "-q", "-p", "User=hob", "/opt/hob/bin/python", "-c", ask
        )
        assert "is not updated by Hob" in said
        container.wait("hob-admin.service", "ActiveState", "inactive")
        container.run("test", "-S", "/run/hob-admin.sock")


GATE = r"""
set -e
mkdir -p /etc/rauc /usr/lib/hob /run/systemd/system/hob-health.service.d
echo >/etc/rauc/system.conf
printf '#!/bin/sh\n[ "$1" != get-default ] || echo a\n' >/usr/lib/hob/slots
chmod 755 /usr/lib/hob/slots
printf '[Unit]\nFailureAction=none\n' >/run/systemd/system/hob-health.service.d/test.conf
systemctl daemon-reload
# A test before this one may have stopped it.
systemctl start hob.service
systemctl start hob-health.service || true
"""
"""A system that believes itself on trial, without slots to decide about, and that does not restart."""


def test_the_health_gate_asks_within_its_sandbox(container: Container, key: str) -> None:
    """What its unit forbids is not what it needs: the model answers it, and only the slots are missing."""
    container.run("sh", "-c", GATE)
    said = container.run("journalctl", "--no-pager", "-o", "cat", "-u", "hob-health.service")
    assert "the model answered: " in said
    assert "the new system is given up: " in said
    assert container.show("hob-health.service", "Result") == "exit-code"
