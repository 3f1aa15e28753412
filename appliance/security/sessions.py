"""Signed-in browsers: a random cookie, its hash in the store."""

import time

from starlette.requests import HTTPConnection
from starlette.responses import Response

from appliance.security.secret import fingerprint, new_secret
from appliance.store import Session, Store

COOKIE = "hob_session"

# A session ends 30 days after its last use, and after a year whatever happens.
IDLE_SECONDS = 30 * 24 * 3600
ABSOLUTE_SECONDS = 365 * 24 * 3600
# "Last seen" is written, and the cookie renewed, at most this often: a page is many requests.
TOUCH_SECONDS = 3600


class Sessions:
    """Opens, finds and ends sessions. Tokens are made here alone; what a browser brings is only looked up."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def open(self, user_agent: str) -> str:
        """Sign a browser in; the new token, which nobody sees again."""
        token = new_secret()
        expires = time.time() + ABSOLUTE_SECONDS
        await self._store.run(self._store.add_session, fingerprint(token), expires, user_agent[:200])
        return token

    async def find(self, token: str | None) -> Session | None:
        """The live session of a token, or None."""
        if not token:
            return None
        session = await self._store.run(self._store.session, fingerprint(token))
        if session is None or session.seen + IDLE_SECONDS < time.time():
            return None
        return session

    async def touch(self, session: Session) -> bool:
        """Note that a session is in use; True when that was written and the cookie should be renewed."""
        if time.time() - session.seen < TOUCH_SECONDS:
            return False
        await self._store.run(self._store.touch_session, session.id)
        return True

    async def close(self, token: str | None) -> None:
        """Sign out whoever holds this token; nothing happens where nobody does."""
        if (session := await self.find(token)) is not None:
            await self._store.run(self._store.revoke_session, session.id)


def set_cookie(response: Response, connection: HTTPConnection, token: str) -> None:
    """Hand the token to the browser: unreadable for scripts, never sent along by other sites' forms.

    Lax and not Strict, so that a link to a chat opened from a mail finds the person signed in; GETs change
    nothing here. Secure only over https: on a LAN there is no certificate for hob.local.
    """
    response.set_cookie(
        COOKIE,
        token,
        max_age=IDLE_SECONDS,
        httponly=True,
        samesite="lax",
        secure=connection.url.scheme in {"https", "wss"},
    )


def clear_cookie(response: Response, connection: HTTPConnection) -> None:
    """Make the browser forget its token."""
    response.delete_cookie(
        COOKIE, httponly=True, samesite="lax", secure=connection.url.scheme in {"https", "wss"}
    )
