"""The one owner: a password set once with the console's code, then asked for at sign-in."""

import hmac

from appliance.errors import AuthenticationError, PermissionDeniedError
from appliance.security import password as passwords
from appliance.security.throttle import Throttle
from appliance.setup.code import new_code
from appliance.store import Store


def new_setup_code() -> str:
    """A fresh set-up code such as `K7WQ-3MZP`: 39 random bits, guarded further by the throttle."""
    return new_code(2)


def plain_code(typed: str) -> str:
    """A code without what people add or change when they type it: case, spaces, hyphens."""
    return "".join(typed.upper().replace("-", " ").split())


class Owner:
    """Sets and checks the owner's password. Every guess, of the code or of the password, is throttled.

    The set-up code ends with its first right use. It is made at start and lives in memory only, unless `code`
    gives one: a device of its own shows the same on its screen at every start, until it has an owner. Whoever
    reads the console owns the machine anyway; nobody else can claim it.
    """

    def __init__(self, store: Store, throttle: Throttle | None = None, code: str = "") -> None:
        self._store = store
        self._throttle = throttle or Throttle()
        self._code = code or new_setup_code()

    async def exists(self) -> bool:
        """Whether a password was set."""
        return await self._store.run(self._store.owner_hash) is not None

    @property
    def setup_code(self) -> str:
        """What the console shows as long as there is no owner."""
        return self._code

    async def set_up(self, code: str, password: str, address: str) -> None:
        """Become the owner by the console's code.

        Raises:
            InvalidRequestError: the password's length; the code stays valid.
            RateLimitError: too many wrong codes from `address` or altogether.
            PermissionDeniedError: wrong code, or there is an owner already.
        """
        passwords.check_length(password)
        if await self.exists():
            raise PermissionDeniedError("This Hob has an owner already.", hint="Sign in instead.")
        self._throttle.admit(address)
        if not hmac.compare_digest(plain_code(code).encode(), plain_code(self._code).encode()):
            raise PermissionDeniedError(
                "The code is not right.",
                hint="It stands on the screen or in the log of the machine Hob runs on.",
            )
        self._throttle.succeeded(address)
        await self._store.run(self._store.create_owner, await passwords.hash_password(password))
        self._code = new_setup_code()

    async def check(self, password: str, address: str) -> None:
        """Whether `password` is the owner's. Renews a hash that was made with older parameters.

        Raises:
            RateLimitError: too many wrong passwords from `address` or altogether.
            AuthenticationError: it is not.
        """
        self._throttle.admit(address)
        encoded = await self._store.run(self._store.owner_hash)
        if encoded is None or not await passwords.verify(encoded, password):
            raise AuthenticationError("The password is not right.", code="wrong_password")
        self._throttle.succeeded(address)
        if passwords.outdated(encoded):
            await self._store.run(self._store.set_owner_hash, await passwords.hash_password(password))
