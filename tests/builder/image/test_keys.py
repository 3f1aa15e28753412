"""Keys: what they may do, that none is lost, and what a signature is worth."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli import hob
from builder.errors import BuildError, FormatError
from builder.image import keys
from builder.image.keys import SIGNING_DAYS, Keys

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Keys that no test changes."""
    return keys.make(tmp_path_factory.mktemp("keys") / "mine", "Test")


@pytest.fixture
def copy(made: Keys, tmp_path: Path) -> Path:
    """The same keys, to be changed."""
    return Path(shutil.copytree(made.folder, tmp_path / "keys"))


def told(*arguments: str | Path) -> str:
    """What openssl prints."""
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_is_made(made: Keys) -> None:
    """Private keys are the owner's alone; the certificate may sign code and nothing else; both are P-256."""
    modes = {path.name: path.stat().st_mode & 0o777 for path in made.folder.iterdir()}
    assert modes["ca.key"] == modes["signing.key"] == 0o600
    assert set(modes) == {"ca.key", "ca.pem", "keyring.pem", "signing.key", "signing.pem"}
    assert made.folder.stat().st_mode & 0o777 == 0o700
    signing = told("x509", "-in", made.certificate, "-noout", "-text")
    assert "Code Signing" in signing
    assert "Digital Signature\n" in signing
    assert "CA:FALSE" in signing
    assert "prime256v1" in signing
    authority = told("x509", "-in", made.authority, "-noout", "-text")
    assert "CA:TRUE, pathlen:0" in authority
    assert "Certificate Sign, CRL Sign\n" in authority
    assert "prime256v1" in authority
    assert abs(made.expires - time.time() - SIGNING_DAYS * 86_400) < 600


def test_nothing_is_written_over(made: Keys, tmp_path: Path) -> None:
    """A folder with anything in it is left alone."""
    before = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    with pytest.raises(BuildError, match="not empty"):
        keys.make(made.folder)
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == before
    (tmp_path / "note").write_text("mine")
    with pytest.raises(BuildError, match="not empty"):
        keys.make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without openssl, or with a name that no certificate carries, no folder appears."""
    with pytest.raises(BuildError, match="no name"):
        keys.make(tmp_path / "keys", "a/b=c")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no openssl"):
        keys.make(tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


def test_a_signature_holds_for_one_content(made: Keys, tmp_path: Path) -> None:
    """It names when it was made, and is worth nothing for other bytes, other keys, or in pieces."""
    file, signature = tmp_path / "manifest.json", tmp_path / "manifest.json.p7s"
    file.write_bytes(b'{"a":\r\n1}')
    keys.sign(made, file, signature)
    assert abs(keys.verify(file, signature, made.keyring) - time.time()) < 120
    other = keys.make(tmp_path / "other")
    with pytest.raises(FormatError, match="not signed by the keys"):
        keys.verify(file, signature, other.keyring)
    file.write_bytes(b'{"a":\n1}')
    with pytest.raises(FormatError, match="not what was signed"):
        keys.verify(file, signature, made.keyring)
    signature.write_bytes(signature.read_bytes()[:200])
    with pytest.raises(FormatError, match="no signature"):
        keys.verify(file, signature, made.keyring)


def test_an_ended_certificate_signs_nothing(made: Keys) -> None:
    """It is refused by name and day, with the command that issues the next."""
    with pytest.raises(BuildError, match="ended on 20") as refused:
        keys.load(made.folder, made.expires + 1)
    assert refused.value.hint == f"hob image keys --renew {made.folder}"
    assert keys.load(made.folder, made.expires - 1) == made


def test_renewing(copy: Path, tmp_path: Path) -> None:
    """The new certificate is trusted by the old keyring, and so is what the old one signed."""
    file, signature = tmp_path / "file", tmp_path / "file.p7s"
    file.write_text("before")
    before = keys.load(copy)
    keys.sign(before, file, signature)
    old = before.certificate.read_bytes()
    renewed = keys.renew(copy)
    assert renewed.certificate.read_bytes() != old
    kept = next(copy.glob("signing-20*.pem"))
    assert kept.read_bytes() == old
    assert kept.with_suffix(".key").stat().st_mode & 0o777 == 0o600
    keys.verify(file, signature, renewed.keyring)
    keys.sign(renewed, file, signature)
    keys.verify(file, signature, before.keyring)
    with pytest.raises(BuildError, match="is there already"):
        keys.renew(copy)


def test_renewing_needs_the_authority(copy: Path) -> None:
    """Its private key may be kept elsewhere: everything else goes on without it."""
    (copy / "ca.key").unlink()
    keys.load(copy)
    with pytest.raises(BuildError, match=r"no ca\.key"):
        keys.renew(copy)


@pytest.mark.parametrize("name", ["ca.pem", "signing.pem", "signing.key", "keyring.pem"])
def test_missing_parts_are_named(copy: Path, name: str) -> None:
    """A folder that lacks something says what."""
    (copy / name).unlink()
    with pytest.raises(BuildError, match=name):
        keys.load(copy)


def test_parts_must_belong_together(copy: Path, tmp_path: Path) -> None:
    """A key of another certificate, or a keyring without the authority, signs nothing."""
    other = keys.make(tmp_path / "other")
    key = copy / "signing.key"
    mine = key.read_bytes()
    key.write_bytes(other.key.read_bytes())
    with pytest.raises(BuildError, match="do not belong together"):
        keys.load(copy)
    key.write_bytes(mine)
    (copy / "keyring.pem").write_bytes(other.keyring.read_bytes())
    with pytest.raises(BuildError, match="verify failed"):
        keys.load(copy)


def test_keys_for_everybody_are_refused(copy: Path) -> None:
    """A private key that others can read is one no more."""
    (copy / "ca.key").chmod(0o644)
    with pytest.raises(BuildError, match="read by others"):
        keys.load(copy)


def test_two_authorities_in_one_keyring(made: Keys, copy: Path, tmp_path: Path) -> None:
    """A keyring with two authorities trusts both: the way from one authority to the next."""
    new = keys.make(tmp_path / "new")
    file = tmp_path / "file"
    file.write_text("x")
    keyring = copy / "keyring.pem"
    keyring.write_bytes(keyring.read_bytes() + new.authority.read_bytes())
    for signer in (keys.load(copy), new):
        keys.sign(signer, file, tmp_path / "sig")
        keys.verify(file, tmp_path / "sig", keyring)


def test_the_command(tmp_path: Path) -> None:
    """`hob image keys DIR` makes keys once, and then says when they end."""
    run = CliRunner()
    folder = str(tmp_path / "keys")
    first = run.invoke(hob, ["image", "keys", folder])
    assert first.exit_code == 0, first.output
    assert "Keep ca.key" in first.output
    before = (tmp_path / "keys/ca.key").read_bytes()
    again = run.invoke(hob, ["image", "keys", folder])
    assert again.output.startswith("The signing certificate ends on 20")
    assert (tmp_path / "keys/ca.key").read_bytes() == before
    renewed = run.invoke(hob, ["image", "keys", "--renew", folder])
    assert "is new" in renewed.output
