"""The settings that a fresh device is given."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli import hob
from appliance.setup import wishes
from appliance.setup.code import ALPHABET
from builder.errors import BuildError, DriveError, FormatError, ToolMissingError
from builder.image import first_boot, flash, gpt
from builder.image.first_boot import Settings
from builder.image.toolbox import Toolbox
from tests.builder.image import disks
from tests.builder.image.disks import MIB

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC4P0vHq8mLZpbzMyPgN3NDkPZ2pU8QkzYlgSHHbVn1f ann@laptop"


def run(toolbox: Toolbox | None, *argv: str | Path, folder: Path) -> str:
    """What a program says."""
    if toolbox:
        return toolbox.run(argv, write=[folder])
    return subprocess.run([str(part) for part in argv], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def image(tmp_path: Path, tools: Toolbox | None) -> Path:
    """A disk image whose partition HOB has a FAT file system with a `hob.toml` of the image's own."""
    path = disks.image(tmp_path, size=48 * MIB)
    sectors = (48 * MIB - MIB) // 512 - 34
    run(tools, "mkfs.fat", "-F", "32", "--offset", "2048", path, str(sectors // 2), folder=tmp_path)
    own = tmp_path / "own"
    own.write_text('hostname = "from-the-image"\n' * 200)
    run(tools, "mcopy", "-i", f"{path}@@{MIB}", own, "::hob.toml", folder=tmp_path)
    return path


def content(disk: Path, tools: Toolbox | None) -> str:
    """`hob.toml` on a flashed disk."""
    return run(tools, "mtype", "-i", f"{disk}@@{MIB}", "::hob.toml", folder=disk.parent)


@given(
    ssid=st.text(max_size=8),
    password=st.one_of(
        st.just(""), st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=8, max_size=63)
    ),
    keys=st.lists(st.text(), max_size=3),
)
def test_the_file_says_what_was_meant(ssid: str, password: str, keys: list[str]) -> None:
    """Any name, any password: TOML's own reader gets them back."""
    settings = Settings("kitchen", ssid, password if ssid else "", "DE" if ssid else "", tuple(keys))
    wanted: dict[str, object] = {"hostname": "kitchen"}
    if keys:
        wanted["ssh_keys"] = keys
    if ssid:
        wanted["wifi"] = {"ssid": ssid, "country": "DE"} | ({"password": password} if password else {})
    assert tomllib.loads(settings.toml()) == wanted


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"hostname": "Kitchen"}, "hostname 'Kitchen'"),
        ({"hostname": "a.b"}, "hostname"),
        ({"hostname": "-a"}, "hostname"),
        ({"hostname": "x" * 64}, "hostname"),
        ({"ssid": "ä" * 17}, "32 bytes"),
        ({"ssid": "x", "password": "short"}, "8 to 63"),
        ({"ssid": "x", "password": "pässwörtlich"}, "ASCII"),
        ({"password": "long enough"}, "without a Wi-Fi"),
        ({"ssid": "x", "country": "de"}, "country 'de'"),
        ({"locale": "german"}, "locale"),
        ({"timezone": "Berlin"}, "time zone 'Berlin'"),
        ({"setup_code": "AAAA"}, "set-up code"),
        ({"setup_code": "K7WQ-3MZP"}, "set-up code"),
    ],
)
def test_what_the_device_would_refuse_is_refused_here(given_: dict[str, str], told: str) -> None:
    """At the computer, where it can be put right, and not on a device without a screen."""
    with pytest.raises(FormatError, match=told):
        Settings(**given_)  # type: ignore[arg-type]  # strings for fields that are strings


def test_set_up_codes_are_the_services_own() -> None:
    """The same symbols; the device's setup takes the shape."""
    assert first_boot.CODE_ALPHABET == ALPHABET
    codes = {first_boot.new_setup_code() for _ in range(200)}
    assert len(codes) == 200
    for code in codes:
        Settings(setup_code=code)


def test_the_device_reads_what_is_written(tmp_path: Path) -> None:
    """Every setting that the command takes, as the device's own reader understands it."""
    (tmp_path / "Europe").mkdir()
    (tmp_path / "Europe/Berlin").write_bytes(b"TZif2")
    settings = Settings(
        hostname="kitchen",
        ssid='Ünser "Netz"',
        password="back\\slash words",
        country="DE",
        ssh_keys=(KEY,),
        locale="de_DE.UTF-8",
        timezone="Europe/Berlin",
        setup_code=first_boot.new_setup_code(),
    )
    found, problems = wishes.read(settings.toml(), tmp_path)
    assert problems == []
    assert found.wifi == wishes.Wifi(ssid='Ünser "Netz"', password="back\\slash words")
    assert (found.hostname, found.country, found.locale) == ("kitchen", "DE", "de_DE.UTF-8")
    assert (found.timezone, found.setup_code) == ("Europe/Berlin", settings.setup_code)
    assert found.ssh_keys is not None
    assert [key.split()[:2] for key in found.ssh_keys] == [KEY.split()[:2]]
    open_wifi, problems = wishes.read(Settings(ssid="café").toml(), tmp_path)
    assert problems == []
    assert open_wifi.wifi == wishes.Wifi(ssid="café")


def test_public_keys_are_read(tmp_path: Path) -> None:
    """As they lie in ~/.ssh, and as authorized_keys has them."""
    path = tmp_path / "keys"
    path.write_text(f"# mine\n\n{KEY}\n{KEY.replace('ann@laptop', '')}\n")
    assert first_boot.ssh_keys(path) == (KEY, KEY.removesuffix(" ann@laptop"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n", "is a private key"),
        ("", "has no public SSH key"),
        ("hello\n", "line 1: no public SSH key"),
        (f"{KEY}\nssh-ed25519 AAAA\n", "line 2: no public SSH key"),
        (KEY.replace("ssh-ed25519", "ssh-rsa"), "line 1"),
        (f'command="rm" {KEY}', "line 1"),
    ],
)
def test_other_keys_are_refused(tmp_path: Path, text: str, told: str) -> None:
    """Above all a private key never goes onto a card."""
    path = tmp_path / "id"
    path.write_text(text)
    with pytest.raises(FormatError, match=told):
        first_boot.ssh_keys(path)


def test_settings_are_written_before_the_disk_starts(
    tmp_path: Path, image: Path, tools: Toolbox | None
) -> None:
    """They replace the image's own, and the rest of the file system is as it was."""
    data = image.read_bytes()
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(64 * MIB))
    settings = Settings("kitchen", "My Wi-Fi", "secret words", "DE", (KEY,), setup_code="K7WQ-3MZP-8HXE")
    flash.write(flash.inspect(image, lambda *_: None), disk, settings, lambda *_: None, tools)
    assert content(disk, tools) == settings.toml()
    assert disk.read_bytes()[:MIB] == data[:MIB]
    assert tomllib.loads(settings.toml())["wifi"]["password"] == "secret words"


def test_settings_are_written_to_a_block_device(
    target: Path, loop: Path, image: Path, tools: Toolbox | None
) -> None:
    """mtools writes to the disk while it is ours alone."""
    os.truncate(target, 64 * MIB)
    subprocess.run(["losetup", "--set-capacity", loop], check=True)
    settings = Settings("kitchen", setup_code="K7WQ-3MZP-8HXE")
    flash.write(flash.inspect(image, lambda *_: None), loop, settings, lambda *_: None, tools)
    assert content(target, tools) == settings.toml()


def test_a_partition_without_a_file_system_is_named(tmp_path: Path, tools: Toolbox | None) -> None:
    """One line, and the disk starts nothing."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(16 * MIB))
    opened = flash.inspect(disks.image(tmp_path), lambda *_: None)
    with pytest.raises(DriveError, match=r"hob\.toml could not be written"):
        flash.write(opened, disk, Settings(hostname="x"), lambda *_: None, tools)
    assert disk.read_bytes()[:MIB] == bytes(MIB)


def test_an_image_of_others_takes_no_settings(tmp_path: Path, tools: Toolbox | None) -> None:
    """Refused before the disk is touched."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"old" * 6 * MIB)
    opened = flash.inspect(disks.image(tmp_path, label="EFI"), lambda *_: None)
    with pytest.raises(FormatError, match="no partition 'HOB'"):
        flash.write(opened, disk, Settings(), lambda *_: None, tools)
    assert disk.read_bytes() == b"old" * 6 * MIB


def test_without_mtools_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names both ways out."""
    monkeypatch.setenv("PATH", str(tmp_path))
    disk = tmp_path / "disk"
    disk.write_bytes(b"old" * 6 * MIB)
    opened = flash.inspect(disks.image(tmp_path), lambda *_: None)
    with pytest.raises(ToolMissingError, match="mcopy") as caught:
        flash.write(opened, disk, Settings(), lambda *_: None)
    assert "mtools" in caught.value.hint
    assert "--plain" in caught.value.hint
    assert disk.read_bytes() == b"old" * 6 * MIB


def invoke(*arguments: str | Path, text: str = "") -> Result:
    """`hob image flash …`, in this process."""
    return CliRunner().invoke(hob, ["image", "flash", *map(str, arguments)], input=text)


def test_the_command_flashes_and_prints_the_code(tmp_path: Path, image: Path, tools: Toolbox | None) -> None:
    """From the command line to the file on the disk."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(64 * MIB))
    key, password = tmp_path / "id.pub", tmp_path / "password"
    key.write_text(KEY + "\n")
    password.write_text("secret words\n")
    done = invoke(
        *(image, disk, "--hostname", "kitchen", "--wifi", "Ünser", "--wifi-password-file", password),
        *("--wifi-country", "DE", "--ssh-key", key, "--locale", "de_DE.UTF-8", "--timezone", "Europe/Berlin"),
    )
    assert done.exit_code == 0, (done.output, done.exception)
    code = re.search(r"with this code: (\S+)", done.stdout)
    assert code
    assert "http://kitchen.local" in done.stdout
    assert "secret words" not in done.output
    assert tomllib.loads(content(disk, tools)) == {
        "hostname": "kitchen",
        "locale": "de_DE.UTF-8",
        "timezone": "Europe/Berlin",
        "setup_code": code[1],
        "ssh_keys": [KEY],
        "wifi": {"ssid": "Ünser", "password": "secret words", "country": "DE"},
    }


def test_the_command_speaks_json(tmp_path: Path) -> None:
    """One object per line; `--plain` leaves the image as it is."""
    image = disks.image(tmp_path)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8 * MIB))
    done = invoke(image, disk, "--plain", "--json")
    assert done.exit_code == 0, done.output
    assert disk.read_bytes() == image.read_bytes()
    lines = done.stdout.splitlines()
    assert lines[-1] == f'{{"device": "{disk}", "image": "hob-test-1.0.img", "setup_code": ""}}'
    assert all('"step"' in line for line in lines[:-1])


def test_the_command_lists_disks(tmp_path: Path) -> None:
    """Without a device nothing is written."""
    if shutil.which("lsblk") is None:
        pytest.skip("lsblk is missing")
    done = invoke(disks.image(tmp_path))
    assert done.exit_code == 1
    assert isinstance(done.exception, BuildError)
    assert str(done.exception) == "which disk?"
    assert re.match(r"Name one of these|No disk is free", done.exception.hint)


def test_the_command_refuses_a_mixture(tmp_path: Path) -> None:
    """Settings that would not be written are not silently dropped."""
    done = invoke(disks.image(tmp_path), tmp_path / "disk", "--plain", "--hostname", "x")
    assert done.exit_code == 2
    assert "--plain writes no settings" in done.output


def test_a_password_is_not_left_behind(
    tmp_path: Path, image: Path, tools: Toolbox | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that mcopy reads lies in a folder of its own that is gone afterwards."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    partition = gpt.read(image.read_bytes()[:MIB])
    assert partition
    first_boot.write(image, partition.partitions[0], Settings("x", "net", "secret words"), tools)
    assert os.listdir(temporary) == []
    assert "secret words" in content(image, tools)
