"""Public SSH keys, as people paste them: one line of `authorized_keys` without options (sshd(8))."""

import base64
import binascii
import hashlib
import struct

KINDS = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
)

RSA_BITS = 2048
"""Shorter RSA keys are refused, as OpenSSH itself advises."""


def check(line: str) -> str:
    """The key in normal form: kind, key and comment with single spaces.

    Options before the kind (`command=…`) are refused: a key here opens the whole device, and one that is
    meant to open less would not.

    Raises:
        ValueError: it is not such a key; says why in words that follow "the key".
    """
    kind, key, comment = _parts(line)
    blob = _blob(kind, key)
    if kind == "ssh-rsa" and _rsa_bits(blob) < RSA_BITS:
        raise ValueError(
            f"has {_rsa_bits(blob)} bits, and RSA keys need {RSA_BITS}; make one with ssh-keygen"
        )
    return " ".join(part for part in (kind, key, comment) if part)


def fingerprint(line: str) -> str:
    """A key's fingerprint as ssh-keygen -l prints it: "SHA256:" and base64 without padding."""
    kind, key, _ = _parts(line)
    digest = hashlib.sha256(_blob(kind, key)).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _parts(line: str) -> tuple[str, str, str]:
    """Kind, base64 text and comment."""
    if "\n" in line.strip() or "\r" in line.strip():
        raise ValueError("is more than one line")
    if "PRIVATE KEY" in line:
        raise ValueError(
            "is a private key, which must never leave your computer; give the one in the .pub file"
        )
    words = line.split()
    if len(words) < 2:
        raise ValueError("is not one: it should look like “ssh-ed25519 AAAA… name”")
    if words[0] not in KINDS:
        raise ValueError(f"begins with {words[0][:40]!r}, which is none of {', '.join(KINDS)}")
    comment = " ".join(words[2:])
    if not comment.isprintable():
        raise ValueError("has a comment with unprintable characters")
    return words[0], words[1], comment


def _blob(kind: str, key: str) -> bytes:
    """The decoded key, whose first string is its kind again (RFC 4253 §6.6)."""
    try:
        blob = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("is damaged: its long middle part is not base64") from error
    inner, rest = _string(blob)
    if inner != kind.encode():
        raise ValueError(f"is damaged: it says {kind} in front and something else inside")
    if not rest:
        raise ValueError("is damaged: it ends too early")
    while rest:
        _, rest = _string(rest)
    return blob


def _string(blob: bytes) -> tuple[bytes, bytes]:
    """The first string of a key (RFC 4251 §5), and what follows it."""
    if len(blob) < 4 or len(blob) < 4 + (length := struct.unpack(">I", blob[:4])[0]):
        raise ValueError("is damaged: it ends too early")
    return blob[4 : 4 + length], blob[4 + length :]


def _rsa_bits(blob: bytes) -> int:
    """The length of an RSA key's modulus."""
    _, rest = _string(blob)
    _, rest = _string(rest)
    modulus, _ = _string(rest)
    return int.from_bytes(modulus, "big").bit_length()
