"""Codes that people read from a screen and type on a phone."""

import secrets

# No 0/O, 1/I/L, or U: 30 symbols that cannot be mistaken for one another.
ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_code(groups: int) -> str:
    """A random code such as `K7WQ-3MZP-XR5T`; each group of four letters has 19.6 bits."""
    return "-".join("".join(secrets.choice(ALPHABET) for _ in range(4)) for _ in range(groups))
