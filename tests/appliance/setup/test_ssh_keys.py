"""Public SSH keys as people paste them, checked against ssh-keygen's own."""

import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.setup.ssh_keys import check, fingerprint
from tests.appliance.setup.device import KEY

KIND, BLOB, _ = KEY.split()


def test_a_key_is_taken_in_normal_form() -> None:
    """Spaces around and between do not matter; a comment may have several words."""
    assert check(f"  {KIND}   {BLOB}  my  phone \n") == f"{KIND} {BLOB} my phone"
    assert check(f"{KIND} {BLOB}") == f"{KIND} {BLOB}"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "is not one"),
        ("hello", "is not one"),
        (f"{KEY}\n{KEY}", "more than one line"),
        ("-----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNzaC1rZXk", "private key"),
        (f'command="reboot" {KEY}', "begins with 'command=\"reboot\"'"),
        (f"ssh-dss {BLOB}", "begins with 'ssh-dss'"),
        (f"{KIND} AAAA!", "not base64"),
        (f"{KIND} AAAA", "ends too early"),
        (f"{KIND} {BLOB[:24]}", "is damaged"),
        (f"ssh-rsa {BLOB}", "something else inside"),
        (f"{KIND} {BLOB} a\x07b", "unprintable"),
    ],
)
def test_what_is_no_key_is_refused(line: str, why: str) -> None:
    """Each with its reason."""
    with pytest.raises(ValueError, match=why):
        check(line)


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
@pytest.mark.parametrize("kind", [["ed25519"], ["ecdsa"], ["ecdsa", "-b", "521"], ["rsa", "-b", "2048"]])
def test_what_ssh_keygen_makes_is_taken(kind: list[str], tmp_path: Path) -> None:
    """Keys of all kinds, with the fingerprint that ssh-keygen itself prints."""
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "me@laptop", "-f", file, "-t", *kind], check=True)
    line = file.with_suffix(".pub").read_text()
    assert check(line) == line.strip()
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", file], capture_output=True, text=True, check=True
    ).stdout
    assert fingerprint(line) == shown.split()[1]


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
def test_short_rsa_keys_are_refused(tmp_path: Path) -> None:
    """1024 bits can be broken."""
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", file, "-t", "rsa", "-b", "1024"], check=True)
    with pytest.raises(ValueError, match="has 1024 bits"):
        check(file.with_suffix(".pub").read_text())
