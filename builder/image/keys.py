"""Keys that sign what a device installs: a certificate authority of one's own, P-256 throughout.

    DIR/ca.pem, ca.key              the authority; its key serves to issue signing certificates alone
    DIR/signing.pem, signing.key    what bundles and manifests are signed with
    DIR/keyring.pem                 the authorities that a device built from here trusts; goes into the image

Private keys have mode 0600, and no file that is there is ever written over. Certificates are X.509
(RFC 5280); signatures are CMS, detached, DER (RFC 5652). Ed25519 is not an option: RAUC's CMS has none.

A device may have no clock, so what it checks is that the signature was made while the certificate was valid,
by the signature's own time. Expiry thus ends the use of a key that is kept honestly; one that leaked is ended
by taking its authority out of the keyring (docs/updates.md).
"""

import contextlib
import os
import re
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder.errors import BuildError, FormatError, ToolMissingError

AUTHORITY_DAYS: Final = 30 * 365
"""An appliance in a cupboard may wait this long for its next update."""

SIGNING_DAYS: Final = 3 * 365
SOON: Final = 60 * 86_400
"""Seconds before its end from which a signing certificate should be renewed."""

TIMEOUT: Final = 60.0
NEW_KEY: Final = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"

EXTENSIONS: Final = """\
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[signing]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,codeSigning
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
"""
"""The authority signs certificates and nothing else, the certificate signs code and nothing else."""


@dataclass(frozen=True)
class Keys:
    """A folder of keys that was checked.

    Attributes:
        folder: where they are.
        expires: Unix time at which the signing certificate ends.
    """

    folder: Path
    expires: int

    @property
    def authority(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.pem"

    @property
    def certificate(self) -> Path:
        """The signing certificate."""
        return self.folder / "signing.pem"

    @property
    def key(self) -> Path:
        """The private key that signs."""
        return self.folder / "signing.key"

    @property
    def keyring(self) -> Path:
        """The certificates that devices trust."""
        return self.folder / "keyring.pem"

    def expire_soon(self, now: float) -> bool:
        """Whether the signing certificate should be renewed."""
        return self.expires - now < SOON


def make(folder: Path, name: str = "Hob") -> Keys:
    """Make an authority and its first signing certificate in `folder`, which is new or empty.

    `name` is what the certificates are called, for people. All files appear at once or none does.

    Raises:
        BuildError: there is something in the folder, the name cannot be in a certificate, or openssl failed.
        ToolMissingError: there is no openssl.
    """
    if not re.fullmatch(r"[\w .,-]{1,48}", name):
        raise BuildError(
            f"{name!r} is no name for a certificate", hint="Use up to 48 letters, digits, spaces and .,-"
        )
    folder = folder.absolute()
    try:
        if folder.exists() and any(folder.iterdir()):
            raise BuildError(
                f"{folder} is not empty, and keys are never written over",
                hint=f"A new signing certificate from the keys there: hob image keys --renew {folder}",
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".keys-") as work:
            new = Path(work, "new")
            new.mkdir(mode=0o700)
            _authority(new, name)
            _certificate(new, new, name)
            shutil.copyfile(new / "ca.pem", new / "keyring.pem")
            _settle(new)
            new.rename(folder)
    except OSError as error:
        raise BuildError(f"{error.filename or folder}: {error.strerror}") from error
    return load(folder)


def renew(folder: Path, name: str = "Hob") -> Keys:
    """Issue a new signing key and certificate from the authority in `folder`; devices trust it at once.

    What signed so far stays beside it, as `signing-UNTIL.pem` and `.key`, UNTIL being the day it ends.

    Raises:
        BuildError: as `make`; also when the authority's key is not there, which may be kept elsewhere.
    """
    folder = folder.absolute()
    if not (folder / "ca.key").is_file():
        raise BuildError(
            f"{folder} has no ca.key, so nothing can be issued",
            hint="Bring the authority's private key back for as long as this takes.",
        )
    until = time.strftime("%Y-%m-%d", time.gmtime(_end(folder / "signing.pem")))
    kept = [folder / f"signing-{until}{suffix}" for suffix in (".pem", ".key")]
    if found := next((path for path in kept if path.exists()), None):
        raise BuildError(f"{found} is there already, and keys are never written over", hint="Move it away.")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as work:
            new = Path(work)
            _certificate(folder, new, name)
            _settle(new)
            for old, keep in zip(("signing.pem", "signing.key"), kept, strict=True):
                os.link(folder / old, keep)
            # The pair changes in two steps; `load` refuses what a power cut leaves between them, and says so.
            for file in ("signing.key", "signing.pem"):
                (new / file).replace(folder / file)
            _settle(folder)
    except OSError as error:
        raise BuildError(f"{error.filename or folder}: {error.strerror}") from error
    return load(folder)


def load(folder: Path, now: float | None = None) -> Keys:
    """The keys in a folder, fit to sign.

    Raises:
        BuildError: something is missing, others may read the key, the parts do not belong together, or the
            certificate has ended by `now` (Unix time; the clock's by default).
    """
    folder = folder.absolute()
    for file in ("ca.pem", "signing.pem", "signing.key", "keyring.pem"):
        if not (folder / file).is_file():
            raise BuildError(f"{folder} has no {file}", hint=f"Make keys: hob image keys {folder}")
    for key in folder.glob("*.key"):
        if key.stat().st_mode & 0o077:
            raise BuildError(f"{key} can be read by others", hint=f"chmod 600 {key}")
    keys = Keys(folder, _end(folder / "signing.pem"))
    public = _openssl("pkey -pubout", ("-in", keys.key))
    if public != _openssl("x509 -noout -pubkey", ("-in", keys.certificate)):
        raise BuildError(
            f"{keys.key} and {keys.certificate} do not belong together",
            hint="Put back the pair signing-….key and signing-….pem, then renew again.",
        )
    # The chain by itself; whether its time is over has a message of its own.
    _openssl("verify -no_check_time -purpose any", ("-CAfile", keys.keyring), ("", keys.certificate))
    if keys.expires <= (time.time() if now is None else now):
        day = time.strftime("%Y-%m-%d", time.gmtime(keys.expires))
        raise BuildError(
            f"the signing certificate in {folder} ended on {day}",
            hint=f"hob image keys --renew {folder}",
        )
    return keys


def sign(keys: Keys, file: Path, signature: Path) -> None:
    """Write a detached signature of `file`."""
    with tempfile.TemporaryDirectory(dir=signature.parent, prefix=".sign-") as work:
        new = Path(work, "signature")
        _openssl(
            "cms -sign -binary -md sha256 -outform DER -nosmimecap",
            ("-signer", keys.certificate),
            ("-inkey", keys.key),
            ("-in", file),
            ("-out", new),
        )
        new.replace(signature)


def verify(file: Path, signature: Path, keyring: Path) -> int:
    """Check that `file` was signed by somebody the keyring trusts; when, in Unix time.

    The certificate must have been valid at the time that the signature names.

    Raises:
        FormatError: it was not, or has changed since.
    """
    when = signed_at(signature)
    try:
        _openssl(
            f"cms -verify -binary -inform DER -purpose any -attime {when}",
            ("-in", signature),
            ("-content", file),
            ("-CAfile", keyring),
            ("-out", Path(os.devnull)),
        )
    except BuildError as error:
        raise FormatError(
            f"{file} is not what was signed, or not signed by the keys in {keyring}: {error.hint}",
            hint="Fetch it again, from whom you trust.",
        ) from error
    return when


def signed_at(signature: Path) -> int:
    """The time that a signature says it was made, in Unix time (RFC 5652 §11.3).

    Raises:
        FormatError: that is no signature, or it names no time.
    """
    try:
        text = _openssl("cms -cmsout -print -noout -inform DER", ("-in", signature))
    except BuildError as error:
        raise FormatError(f"{signature} is no signature", hint="Fetch it again.") from error
    found = re.search(r"signingTime[^\n]*\n\s*(?:set:\s*)?(?:UTCTIME|GENERALIZEDTIME):([^\n]+)", text)
    if found is None:
        raise FormatError(f"{signature} does not say when it was made", hint="Fetch it again.")
    return ssl.cert_time_to_seconds(" ".join(found[1].split()))


def _authority(folder: Path, name: str) -> None:
    with _extensions() as config:
        _openssl(
            f"req -new -x509 -extensions ca -sha256 {NEW_KEY} -days {AUTHORITY_DAYS}",
            ("-config", config),
            ("-subj", f"/CN={name} update authority"),
            ("-keyout", folder / "ca.key"),
            ("-out", folder / "ca.pem"),
        )


def _certificate(authority: Path, folder: Path, name: str) -> None:
    """A signing key and its certificate in `folder`, issued by the authority of another."""
    with _extensions() as config:
        request = folder / "request.pem"
        _openssl(
            f"req -new {NEW_KEY}",
            ("-config", config),
            ("-subj", f"/CN={name} update signing"),
            ("-keyout", folder / "signing.key"),
            ("-out", request),
        )
        _openssl(
            f"x509 -req -sha256 -extensions signing -days {SIGNING_DAYS}",
            ("-in", request),
            ("-CA", authority / "ca.pem"),
            ("-CAkey", authority / "ca.key"),
            ("-set_serial", str(secrets.randbits(127) | 1)),
            ("-extfile", config),
            ("-out", folder / "signing.pem"),
        )
        request.unlink()


@contextlib.contextmanager
def _extensions() -> Iterator[str]:
    """A file that says what each kind of certificate may be used for."""
    with tempfile.NamedTemporaryFile("w", suffix=".cnf") as file:
        file.write(EXTENSIONS)
        file.flush()
        yield file.name


def _settle(folder: Path) -> None:
    """Private keys private, and everything on disk."""
    for path in folder.glob("*.key"):
        path.chmod(0o600)
    for path in (*folder.glob("*.pem"), *folder.glob("*.key"), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _end(certificate: Path) -> int:
    """Unix time at which a certificate ends."""
    text = _openssl("x509 -noout -enddate", ("-in", certificate))
    return ssl.cert_time_to_seconds(text.strip().removeprefix("notAfter="))


def _openssl(words: str, *options: tuple[str, str | Path]) -> str:
    """What openssl prints: `words` are its command and flags, `options` those that take a value.

    Raises:
        BuildError: it failed; its last word is the hint.
        ToolMissingError: there is none.
    """
    verb = words.split()[0]
    command = ["openssl", *words.split(), *(str(part) for option in options for part in option if part)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError as error:
        raise ToolMissingError("there is no openssl", hint="Install the package openssl.") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"openssl {verb} does not end") from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise BuildError(f"openssl {verb} failed", hint=_reason(lines))
    return done.stdout


def _reason(lines: Sequence[str]) -> str:
    """The line that says most: "error 10 at 0 depth lookup: …", a library's reason, or the last."""
    for line in lines:
        if found := re.search(r"error \d+ at \d+ depth lookup: (.*)|:Verify error:(.*)", line):
            return (found[1] or found[2]).strip()
        if line.count(":") >= 5:  # 40E7…:error:17000064:CMS routines:function:reason:file:line:detail
            return line.split(":")[5].strip()
    return lines[-1].strip() if lines else ""
