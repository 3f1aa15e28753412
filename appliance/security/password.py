"""Passwords: argon2id (RFC 9106), hashed one at a time and never on the event loop."""

import anyio
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from appliance.errors import InvalidRequestError

MIN_LENGTH = 8
MAX_LENGTH = 1024

# Above OWASP's floor for argon2id (19 MiB, 2 passes, 1 lane). 32 MiB is affordable on a board with 512 MiB
# as long as one hash runs at a time, and costs a tenth of a second here, about half a second on a Pi 4.
_hasher = PasswordHasher(time_cost=3, memory_cost=32 * 1024, parallelism=1)

# Two hashes at once would double the memory and take a second core from the engine.
_one_at_a_time = anyio.CapacityLimiter(1)


def check_length(password: str) -> None:
    """Refuse passwords that are too short to keep anyone out or too long to be meant.

    Raises:
        InvalidRequestError: fewer than 8 or more than 1024 characters.
    """
    if len(password) < MIN_LENGTH:
        raise InvalidRequestError(f"The password needs at least {MIN_LENGTH} characters.", param="password")
    if len(password) > MAX_LENGTH:
        raise InvalidRequestError(f"The password may have at most {MAX_LENGTH} characters.", param="password")


async def hash_password(password: str) -> str:
    """The encoded argon2id hash, parameters and salt included."""
    return await anyio.to_thread.run_sync(_hasher.hash, password, limiter=_one_at_a_time)


async def verify(encoded: str, password: str) -> bool:
    """Whether `password` made `encoded`. Takes the same time for every password that is wrong."""
    if len(password) > MAX_LENGTH:
        return False
    return await anyio.to_thread.run_sync(_matches, encoded, password, limiter=_one_at_a_time)


def outdated(encoded: str) -> bool:
    """Whether the hash was made with other parameters than today's, so that sign-in should renew it."""
    return _hasher.check_needs_rehash(encoded)


def _matches(encoded: str, password: str) -> bool:
    try:
        return _hasher.verify(encoded, password)
    except (VerifyMismatchError, InvalidHashError):
        return False
