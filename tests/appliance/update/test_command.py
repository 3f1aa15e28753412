"""`hob update`: what an owner does at the console, and what the timer does at night."""

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance.cli import hob
from appliance.update import record
from tests.appliance.update.administration import administration
from tests.appliance.update.device import Device


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, without a word."""

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def restarts(device: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The device with its administration; whatever asks for a restart is in the list."""
    monkeypatch.setenv("HOB_DATA_DIR", str(device.folder))
    monkeypatch.setenv("HOB_ADMIN_SOCKET", str(device.folder / "admin"))
    with administration(device.folder / "admin") as asked:
        yield asked


@pytest.fixture
def url(device: Device) -> Iterator[str]:
    """The address of a folder where releases are published."""
    folder = device.folder / "shelf"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def publish(device: Device, version: str) -> None:
    """Put a release on the shelf."""
    shelf = device.folder / "shelf"
    made = device.bundle(f"hob-{version}.raucb", version=version)
    made.rename(shelf / made.name)
    data = (shelf / made.name).read_bytes()
    files = [{"name": made.name, "size": len(data), "sha256": ""}]
    (shelf / "hob.manifest.json").write_text(
        json.dumps({"version": version, "compatible": "hob-test", "files": files})
    )


def update(*arguments: str | Path) -> Result:
    """Run `hob update`."""
    return CliRunner().invoke(hob, ["update", *map(str, arguments)])


def done(*arguments: str | Path) -> str:
    """Its output, where it succeeds."""
    result = update(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def refused(*arguments: str | Path) -> str:
    """What it refuses with."""
    result = update("--json", *arguments)
    assert result.exit_code == 1
    return str(json.loads(result.stdout.splitlines()[-1])["error"])


def test_a_file(device: Device, restarts: list[str], tmp_path: Path) -> None:
    """A file from anywhere is installed; a copy of it does not stay."""
    file = tmp_path / "from-a-mail.raucb"
    file.write_bytes(device.bundle().read_bytes())
    assert "brings 0.2.0." in done("--check", file)
    told = done(file)
    assert "Version 0.2.0 is installed and will be tried at the next start. Restart it" in told
    assert file.exists()
    assert not (device.folder / "updates" / file.name).exists()
    assert device.state["once"] == "b"
    assert restarts == []
    assert "0.2.0 is installed, and will be tried at the next start." in done("--status")


def test_restarting_at_once(device: Device, restarts: list[str]) -> None:
    """`--restart` tries it now."""
    assert done("--restart", device.bundle()).endswith("The device restarts.\n")
    assert restarts == ["reboot"]


def test_for_programs(device: Device, restarts: list[str]) -> None:
    """`--json` prints how far it is, line by line, and what came of it."""
    lines = [json.loads(line) for line in done("--json", device.bundle()).splitlines()]
    assert lines[-1] == {"done": "Version 0.2.0 is installed and will be tried at the next start."}
    fractions = [line["fraction"] for line in lines[:-1]]
    assert fractions == sorted(fractions)
    assert any(line["step"].startswith("Copying") for line in lines[:-1])
    status = json.loads(done("--json", "--status"))
    assert (status["tried"], status["state"], status["next"]) == ("0.2.0", "waiting", "b")


def test_an_address(device: Device, restarts: list[str], url: str) -> None:
    """A release's manifest, or an update file, is fetched and installed, and nothing of it stays."""
    publish(device, "0.2.0")
    assert "0.2.0 is installed" in done(f"{url}/hob.manifest.json")
    device.set(once="", states={"a": "good", "b": "bad"})
    assert "0.2.0 is installed" in done(f"{url}/hob-0.2.0.raucb")
    assert list((device.folder / "updates").iterdir()) == []


def test_the_configured_address(
    device: Device, restarts: list[str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a source the address in the settings is asked."""
    assert refused() == "no address to ask for updates is set"
    monkeypatch.setenv("HOB_UPDATE_URL", f"{url}/hob.manifest.json")
    publish(device, "0.1.0")
    assert "0.1.0 runs, and there is nothing newer." in done("--check")
    publish(device, "0.3.0")
    assert "0.3.0 is there." in done("--check")
    assert "0.3.0 is installed" in done()


def test_at_night(device: Device, restarts: list[str], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer needs an address, looks unless it may install, and tries no version twice."""
    publish(device, "0.2.0")
    assert done("--scheduled") == ""
    monkeypatch.setenv("HOB_UPDATE_URL", f"{url}/hob.manifest.json")
    assert "0.2.0 is there. Install it" in done("--scheduled")
    assert device.state["once"] == ""
    monkeypatch.setenv("HOB_UPDATE_INSTALL", "true")
    assert "The device restarts." in done("--scheduled")
    assert (device.state["once"], restarts) == ("b", ["reboot"])
    device.boot()
    device.boot("0.1.0")
    assert "was tried, and did not answer; it is not tried again by itself" in done("--scheduled")
    assert restarts == ["reboot"]
    publish(device, "0.2.1")
    done("--scheduled")
    assert restarts == ["reboot", "reboot"]


def test_going_back(device: Device, restarts: list[str]) -> None:
    """`--rollback` has the other slot tried, if it ever worked."""
    assert "no earlier version" in refused("--rollback")
    device.set(booted="b", default="b", states={"a": "good", "b": "good"})
    record.write(record.Record(None, {"a": "0.0.9"}))
    assert "The other slot holds 0.0.9; hob update --rollback goes back to it." in done("--status")
    assert "Version 0.0.9 will be tried" in done("--rollback", "--restart")
    assert (device.state["once"], restarts) == ("a", ["reboot"])


def test_refusals(device: Device, restarts: list[str], tmp_path: Path) -> None:
    """What is wrong is said in a line, and the copy of what will never be taken does not stay."""
    for file, complaint in (
        (device.bundle("a.raucb", signer="stranger"), "not signed by somebody whom this device trusts"),
        (device.bundle("b.raucb", compatible="hob-rpi5"), "this update is for another device"),
        (device.bundle("c.raucb", version="0.0.1"), "older than 0.1.0"),
    ):
        assert complaint in refused(file)
        assert not file.exists()
    assert "is no file" in refused(tmp_path / "absent.raucb")
    assert "--check takes a file" in refused("--check", "http://192.0.2.1/x.raucb")
    elsewhere = tmp_path / "note.txt"
    elsewhere.write_text("hello\n" * 1000)
    assert "is no update, or only a part of one" in refused(elsewhere)
    assert device.state["once"] == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_by_force(device: Device, restarts: list[str]) -> None:
    """Root at the console puts in an older version; nobody else does."""
    file = device.bundle(version="0.0.1")
    assert "Version 0.0.1 is installed" in done("--force", file)


def test_on_other_installations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program on somebody's computer says that it does not update the machine."""
    monkeypatch.setenv("HOB_ADMIN_SOCKET", str(tmp_path / "absent"))
    monkeypatch.setenv("HOB_DATA_DIR", str(tmp_path))
    for arguments in ([], ["--status"], ["--rollback"], ["http://192.0.2.1/x.raucb"]):
        assert "this kind of installation does not let Hob change" in refused(*arguments)
