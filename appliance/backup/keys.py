"""What backups are encrypted to, so that the box can make backups that it cannot read itself.

A passphrase becomes, by argon2id (RFC 9106) with a salt, 64 bytes: an age identity (an X25519 key), and a
proof key. Kept on this machine are the salt, the identity's public half (an age recipient) and the proof key.
Whoever knows the passphrase gets the identity back from the salt, which every backup carries. The proof key
signs what is in a backup: encrypting to a recipient proves nothing about who did it.

As long as nobody has chosen a passphrase, the identity itself lies on this machine. Such backups help against
mistakes, on this machine, and are not given away. Backups to recipients alone (age1...) carry no proof.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Annotated, Final

import msgspec
from argon2.low_level import Type, hash_secret_raw

from appliance.backup import bech32
from appliance.errors import BackupError, InvalidRequestError
from appliance.library import space
from appliance.library.shelf import put

FILE: Final = "key.json"
PART: Final = ".new"
"""What the name of a small file ends with until it is complete."""

FORMER: Final = "key-before.json"
"""The key of the time before there was a passphrase, as long as one of its backups may be there."""

MIN_LENGTH: Final = 12
"""Characters of a passphrase: a backup can be carried away, and guessed at for years."""
MAX_LENGTH: Final = 1024

RECIPIENT: Final = r"^age1[0-9a-z]{20,2000}\Z"
SECRET: Final = "age-secret-key-"  # noqa: S105 - what every identity begins with
Base64 = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9+/]{22,64}={0,2}\Z")]


class Kdf(msgspec.Struct, frozen=True):
    """How argon2id (version 0x13) makes a key of a passphrase: salt in base64, memory in KiB.

    Twice the cost of a password that only this machine checks. Bounds keep a forged file from taking the
    machine's memory or its afternoon.
    """

    salt: Base64
    memory: Annotated[int, msgspec.Meta(ge=8 * 1024, le=256 * 1024)] = 64 * 1024
    passes: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What this Hob's backups are encrypted to.

    Attributes:
        recipients: age recipients; each opens every backup.
        kdf: makes the identity of the first of a passphrase; None where there is no passphrase.
        proof: base64 of what signs the content; "" where nothing does.
        identity: the identity itself, while there is no passphrase; "" otherwise.
        made: Unix time.
    """

    recipients: Annotated[
        tuple[Annotated[str, msgspec.Meta(pattern=RECIPIENT)], ...], msgspec.Meta(min_length=1, max_length=16)
    ]
    kdf: Kdf | None = None
    proof: str = ""
    identity: str = ""
    made: int = 0

    @property
    def portable(self) -> bool:
        """Whether its backups can be read without this machine."""
        return not self.identity

    @property
    def opener(self) -> "Opener":
        """What opens its backups, where the identity lies here."""
        assert self.identity
        return Opener(self.identity, self.recipients[0], base64.b64decode(self.proof))

    def prove(self, data: bytes) -> str:
        """HMAC-SHA-256 of `data` in hex; "" where there is no proof key."""
        return proof(base64.b64decode(self.proof), data) if self.proof else ""


class Opener(msgspec.Struct, frozen=True):
    """What opens a backup: an age identity, its recipient, and the proof key where there is one."""

    identity: str
    recipient: str
    proof: bytes = b""


def proof(key: bytes, data: bytes) -> str:
    """HMAC-SHA-256 of `data` in hex."""
    return hmac.new(key, data, hashlib.sha256).hexdigest()


def of_passphrase(passphrase: str, now: float, recipients: tuple[str, ...] = ()) -> Key:
    """A key whose identity is nowhere but in the passphrase; further `recipients` open its backups too.

    Raises:
        InvalidRequestError: the passphrase is too short or too long, or a recipient is none.
    """
    if len(passphrase) < MIN_LENGTH:
        raise InvalidRequestError(
            f"the passphrase needs at least {MIN_LENGTH} characters",
            param="passphrase",
            hint="Four or five words are easy to remember and hard to guess.",
        )
    if len(passphrase) > MAX_LENGTH:
        raise InvalidRequestError(
            f"the passphrase may have at most {MAX_LENGTH} characters", param="passphrase"
        )
    kdf = Kdf(base64.b64encode(os.urandom(16)).decode())
    opener = derive(passphrase, kdf)
    return Key(
        recipients=(opener.recipient, *checked(recipients)),
        kdf=kdf,
        proof=base64.b64encode(opener.proof).decode(),
        made=int(now),
    )


def of_recipients(recipients: tuple[str, ...], now: float) -> Key:
    """A key that only the identities of these age recipients open.

    Raises:
        InvalidRequestError: one is no recipient, or there is none.
    """
    if not recipients:
        raise InvalidRequestError("no recipient is given", param="recipient")
    return Key(recipients=checked(recipients), made=int(now))


def kept_here(now: float) -> Key:
    """A key whose identity lies on this machine."""
    secret, signing = os.urandom(32), secrets.token_bytes(32)
    opener = _opener(secret, signing)
    return Key(
        recipients=(opener.recipient,),
        proof=base64.b64encode(signing).decode(),
        identity=opener.identity,
        made=int(now),
    )


def derive(passphrase: str, kdf: Kdf) -> Opener:
    """What a passphrase opens; a wrong one gives a recipient that the backup does not name."""
    made = hash_secret_raw(
        passphrase.encode(),
        base64.b64decode(kdf.salt),
        time_cost=kdf.passes,
        memory_cost=kdf.memory,
        parallelism=1,
        hash_len=64,
        type=Type.ID,
    )
    return _opener(made[:32], made[32:])


def opener_of(identity: str) -> Opener:
    """An opener from an age identity as its owner writes it, AGE-SECRET-KEY-1...; it proves nothing.

    Raises:
        BackupError: it is none.
    """
    from pyrage import IdentityError, x25519

    lines = [line.strip() for line in identity.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        raise BackupError("the identity is not one line", hint="It looks like AGE-SECRET-KEY-1...")
    try:
        parsed = x25519.Identity.from_str(lines[0])
    except (IdentityError, ValueError) as error:
        raise BackupError("that is no age identity", hint="It looks like AGE-SECRET-KEY-1...") from error
    return Opener(str(parsed), str(parsed.to_public()))


def checked(recipients: tuple[str, ...]) -> tuple[str, ...]:
    """The recipients, if age knows them as such.

    Raises:
        InvalidRequestError: one is none; names it.
    """
    from pyrage import RecipientError, x25519

    for recipient in recipients:
        try:
            x25519.Recipient.from_str(recipient)
        except (RecipientError, ValueError) as error:
            raise InvalidRequestError(
                f"{recipient[:100]!r} is no age recipient",
                param="recipient",
                hint="It begins with age1; `age-keygen` prints one.",
            ) from error
    return recipients


def load(folder: Path) -> Key | None:
    """The key in a folder of backups; None where there is none yet.

    Raises:
        BackupError: it cannot be read.
    """
    file = folder / FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Key)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise BackupError(
            f"{file} cannot be read: {error}", hint="Set the passphrase again: `hob backup passphrase`."
        ) from error


def save(folder: Path, key: Key) -> None:
    """Keep a key; it replaces the one before in one step. An identity that lay here stays, for its backups.

    Raises:
        DiskFullError, LibraryError: the disk refuses.
    """
    before = load(folder) if (folder / FILE).exists() else None
    if before is not None and before.identity and before != key:
        write(folder / FORMER, msgspec.json.encode(before))
    write(folder / FILE, msgspec.json.encode(key))


def own(folder: Path) -> list[Key]:
    """The keys whose identity lies in a folder of backups."""
    found = []
    for name in (FILE, FORMER):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found.append(msgspec.json.decode((folder / name).read_bytes(), type=Key))
    return [key for key in found if key.identity]


def write(file: Path, data: bytes) -> None:
    """Replace a file in one step by one that only this user can read, on disk when this returns.

    Raises:
        DiskFullError, LibraryError: the disk refuses.
    """
    with space.writing(file.parent):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}{PART}")
        try:
            with open(partial, "wb", opener=private) as stream:
                stream.write(data)
            put(partial, file)
        finally:
            partial.unlink(missing_ok=True)


def private(path: str, flags: int) -> int:
    """Open a file that only this user can read; an `opener`."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _opener(secret: bytes, signing: bytes) -> Opener:
    return msgspec.structs.replace(opener_of(bech32.encode(SECRET, secret).upper()), proof=signing)
