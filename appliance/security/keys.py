"""API keys: how programs on the LAN get in."""

import time

from appliance.errors import InvalidRequestError
from appliance.security.secret import fingerprint, new_secret
from appliance.store import ApiKey, Store

PREFIX = "hob_"
# What is shown in lists: enough to tell keys apart, nothing to guess the rest from.
SHOWN = len(PREFIX) + 6
# A streaming client makes many requests; "last used" is kept to the minute.
TOUCH_SECONDS = 60


def add_key(store: Store, name: str) -> tuple[ApiKey, str]:
    """Make a key called `name`; its record and the key itself, which is shown this once.

    Raises:
        InvalidRequestError: the name is empty, longer than 100 characters or not printable.
    """
    name = name.strip()
    if not name or len(name) > 100 or not name.isprintable():
        raise InvalidRequestError(
            f"A key's name has 1 to 100 printable characters (got {name[:100]!r}).", param="name"
        )
    key = PREFIX + new_secret()
    return store.add_key(name, fingerprint(key), key[:SHOWN]), key


class Keys:
    """Finds keys that requests bring. Every request asks the store, so a revoked key ends at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, key: str) -> ApiKey | None:
        """The record of a key, or None; notes that it was used."""
        record = await self._store.run(self._store.key_by_hash, fingerprint(key))
        if record is not None and (record.used is None or time.time() - record.used >= TOUCH_SECONDS):
            await self._store.run(self._store.touch_key, record.id)
        return record


def bearer(authorization: str | None) -> str | None:
    """The token of an `Authorization: Bearer` header (RFC 6750 §2.1), or None for other schemes."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
