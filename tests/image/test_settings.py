"""The settings of a device: hob.toml on its boot partition, the page about the device, and SSH, on one disk.

One machine lives through it, in the order of this file: first start with a file full of wishes and a mistake,
another name by the page, then a start that takes the SSH key away again.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.image import people
from tests.image.emulator import Emulator
from tests.image.home import Home, flashed
from tests.image.people import WAIT

pytestmark = pytest.mark.image

SECRET = "correct horse battery"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SSH key of the device's owner."""
    file = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "owner", "-f", file], check=True)
    return file


@pytest.fixture(scope="module")
def home(
    emulator: Emulator, image: Path, accelerator: str, key: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Home]:
    """A freshly flashed machine with everything in its hob.toml, one thing of it wrong."""
    wishes = (
        f'setup_code = "{people.CODE}"\nhostname = "kitchen"\ntimezone = "Mars"\n'
        f'ssh_keys = ["{key.with_suffix(".pub").read_text().strip()}"]\n'
        f'[wifi]\nssid = "home"\npassword = "{SECRET}"\ncountry = "DE"\n'
    )
    folder = tmp_path_factory.mktemp("settings")
    home = flashed(emulator, image, folder, accelerator, settings=wishes)
    yield home
    home.kill()


def ssh(home: Home, key: Path, *options: str, command: str = "hostname") -> subprocess.CompletedProcess[str]:
    """Log in as root and run a command, or be refused."""
    return subprocess.run(
        [
            *("ssh", "-F", "none", "-p", str(home.machine.port(22)), "-i", str(key)),
            *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60"),
            *options,
            *("root@127.0.0.1", command),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_owners_key_opens_ssh(home: Home, key: Path) -> None:
    """The key of hob.toml logs in at the first start, on a machine that has its new name."""
    home.on()
    done = ssh(home, key)
    assert (done.returncode, done.stdout) == (0, "kitchen\n"), done.stderr


def test_nothing_but_a_key_does(home: Home, key: Path, tmp_path: Path) -> None:
    """Neither a password nor a stranger's key nor another user gets in."""
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    for done in (
        ssh(home, other),
        ssh(home, key, "-o", "PubkeyAuthentication=no"),
        ssh(home, key, "-l", "hob"),
    ):
        assert done.returncode == 255
        assert "Permission denied (publickey)" in done.stderr


def test_the_page_gives_another_name(home: Home, key: Path, chromium: Browser) -> None:
    """The owner sees what was wrong in hob.toml, and renames the device; the machine then calls itself so."""
    owner = people.set_up(chromium, home.on().url)
    page = owner.page
    page.goto("/device")
    expect(page.locator("#problems")).to_contain_text("timezone: is none that is known: 'Mars'")
    page.get_by_label("In this house Hob is").fill("attic")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_text("This Hob is called attic.local now.")).to_be_visible(timeout=WAIT)
    owner.close()
    assert ssh(home, key).stdout == "attic\n"
    home.machine.wait()


def test_secrets_have_left_the_boot_partition(home: Home) -> None:
    """What was taken over is gone there, to the last sector; what was wrong is written beside it."""
    home.off()
    left = home.disk.get("hob.toml").decode()
    assert 'ssid = "home"' in left
    start = home.disk.start("HOB")
    with home.disk.path.open("rb") as disk:
        disk.seek(start)
        partition = disk.read(home.disk.start("root-a") - start)
    assert SECRET.encode() not in partition
    report = home.disk.get("hob-setup.txt").decode()
    assert "timezone: is none that is known: 'Mars'" in report
    assert "http://attic.local" in report


def test_a_later_edit_holds_from_the_next_start(home: Home, key: Path) -> None:
    """An empty list of keys closes SSH; the name that the page gave stays, since the file's is an old one."""
    left = home.disk.get("hob.toml").decode()
    line = next(line for line in left.splitlines() if line.startswith("ssh_keys"))
    home.disk.put("hob.toml", left.replace(line, "ssh_keys = []").replace('"Mars"', '"Europe/Berlin"'))
    machine = home.on(probe=True)
    assert not machine.is_open(22)
    assert machine.probe("date +%Z").strip() in {"CET", "CEST"}
