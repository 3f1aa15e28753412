"""Random secrets that machines keep: session tokens and API keys.

A secret has 256 random bits, so nobody can try them all, and one pass of SHA-256 is enough to store it: the
slow hashes that passwords need make up for guessable input, which this is not. A fast hash also lets the
store find a secret by its hash, so that no comparison of secrets ever happens in our code.
"""

import hashlib
import secrets


def new_secret() -> str:
    """256 random bits as 43 URL-safe characters."""
    return secrets.token_urlsafe(32)


def fingerprint(secret: str) -> str:
    """What the store keeps in place of the secret: SHA-256, hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
