"""The files of the image's operating system, as far as programs can judge them without booting."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SYSTEM = ROOT / "builder/image/system"
FOLDERS = [SYSTEM / name for name in ("common", "uefi", "pi")]
FILES = sorted(
    path for folder in FOLDERS for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
)
SCRIPTS = [path for path in FILES if path.read_bytes().startswith(b"#!/bin/sh")]
UNITS = sorted((SYSTEM / "common/usr/lib/systemd/system").glob("*.*"))

# What Debian brings, of what the preset switches on.
DEBIANS = {"NetworkManager.service", "nftables.service", "fstrim.timer"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_and_can_be_run(script: Path) -> None:
    """The shell understands them; git keeps that they are programs."""
    assert os.access(script, os.X_OK)
    done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_but_programs_can_be_run() -> None:
    """A configuration file that is executable is a slip, and systemd complains about units of that kind."""
    assert [path for path in FILES if os.access(path, os.X_OK) and path.read_bytes()[:2] != b"#!"] == []


def test_the_preset_names_units_that_exist() -> None:
    """A misspelt name would leave a part of the device off without a word; all else stays off."""
    lines = (SYSTEM / "common/usr/lib/systemd/system-preset/00-hob.preset").read_text().splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    assert rules[-1] == ["disable", "*"]
    ours = {path.name for path in (*(ROOT / "systemd").iterdir(), *UNITS)}
    assert {name for verb, name in rules if verb == "enable"} <= ours | DEBIANS


def test_units_that_are_switched_on_can_be() -> None:
    """`systemctl preset-all` needs an [Install] section of what it enables."""
    text = (SYSTEM / "common/usr/lib/systemd/system-preset/00-hob.preset").read_text()
    for name in re.findall(r"^enable (hob\S+)", text, re.M):
        unit = next(path for path in (*(ROOT / "systemd").iterdir(), *UNITS) if path.name == name)
        assert "[Install]" in unit.read_text(), name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """No unknown key, no misspelt value, no missing program once Hob is where the units expect it."""
    programs = {
        "/opt/hob/bin/python": sys.executable,
        "/opt/hob/bin/hob": str(Path(sys.executable).with_name("hob")),
        "/usr/sbin/sshd": "/bin/true",
        "/usr/sbin/nft": "/bin/true",
        "/usr/lib/hob/": f"{SYSTEM}/common/usr/lib/hob/",
    }
    for unit in (*(ROOT / "systemd").iterdir(), *UNITS):
        if unit.is_file() and unit.suffix in {".service", ".socket", ".path", ".timer"}:
            text = unit.read_text()
            for installed, here in programs.items():
                text = text.replace(installed, here)
            (tmp_path / unit.name).write_text(text)
    for name in (name for name in DEBIANS if name.endswith(".service")):
        (tmp_path / name).write_text("[Service]\nExecStart=/bin/true\n")
    wanted = [tmp_path / unit.name for unit in UNITS if unit.is_file() and "@" not in unit.name]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *wanted],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if line.startswith((str(tmp_path), "hob-"))]
    assert complaints == [], done.stderr


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give folders to other users")
def test_users_and_folders_come_into_being(tmp_path: Path) -> None:
    """systemd's own programs make them in an empty root, and find nothing to do at the second start."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nsystemd-journal:x:101:\n")
    files = [SYSTEM / "common/usr/lib/tmpfiles.d/hob-system.conf", ROOT / "systemd/hob.tmpfiles"]
    for _ in range(2):
        subprocess.run(["systemd-sysusers", f"--root={tmp_path}", ROOT / "systemd/hob.sysusers"], check=True)
        subprocess.run(["systemd-tmpfiles", "--create", f"--root={tmp_path}", *files], check=True)
    modes = {
        name: (tmp_path / name).stat().st_mode & 0o7777
        for name in ("var/lib/hob", "var/lib/hob-system", "var/lib/hob-system/ssh")
    }
    assert modes == {"var/lib/hob": 0o700, "var/lib/hob-system": 0o755, "var/lib/hob-system/ssh": 0o700}


@pytest.mark.skipif(shutil.which("nft") is None, reason="nftables is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="nft checks rules as root alone")
def test_the_firewall_is_understood() -> None:
    """nft itself parses the rules."""
    file = SYSTEM / "common/etc/nftables.conf"
    done = subprocess.run(["nft", "-c", "-f", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_not_listed_does_not_come_in() -> None:
    """Input and forwarding drop; the ports are those that the documentation names."""
    text = (SYSTEM / "common/etc/nftables.conf").read_text()
    assert re.findall(r"hook (\w+) .*policy (\w+);", text) == [("input", "drop"), ("forward", "drop")]
    assert re.findall(r"^\s*tcp dport \{ (.*) \} accept", text, re.M) == ["80, 443, 11434"]
    assert set(re.findall(r"^\s*udp dport (\S+) accept", text, re.M)) == {"5353"}


@pytest.mark.skipif(shutil.which("sshd") is None, reason="OpenSSH's server is not installed")
def test_sshd_understands_its_settings(tmp_path: Path) -> None:
    """And they come to what is promised: keys alone, root alone."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    file = tmp_path / "sshd_config"
    text = (SYSTEM / "common/etc/ssh/sshd_config.d/hob.conf").read_text()
    file.write_text(text.replace("/var/lib/hob-system/ssh/ssh_host_ed25519_key", str(key)))
    sshd = shutil.which("sshd") or ""
    told = subprocess.run([sshd, "-T", "-f", file], capture_output=True, text=True, check=True).stdout
    for line in (
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "usepam no",
        "allowusers root",
    ):
        assert line in told.splitlines()


def test_data_is_not_written_for_reading() -> None:
    """Neither times of access nor every change at once: cards wear out."""
    lines = (SYSTEM / "common/etc/fstab").read_text().splitlines()
    options = {
        row[1]: row[3].split(",") for row in map(str.split, lines) if row and not row[0].startswith("#")
    }
    assert {"noatime", "lazytime", "x-systemd.growfs", "nosuid", "nodev"} <= set(options["/var"])
    assert {"ro", "noexec", "umask=0077", "nofail"} <= set(options["/boot"])
    assert {"noexec", "nosuid"} <= set(options["/tmp"])  # noqa: S108  # a mount point


@pytest.mark.parametrize(
    "name",
    [
        "usr/lib/systemd/journald.conf.d/hob.conf",
        "usr/lib/systemd/system.conf.d/hob.conf",
        "usr/lib/NetworkManager/conf.d/hob.conf",
    ],
)
def test_settings_have_sections(name: str) -> None:
    """A key before any section is ignored by the programs that read it, without a word."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.read_string((SYSTEM / "common" / name).read_text())
    assert parser.sections()
