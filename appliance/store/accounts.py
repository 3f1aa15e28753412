"""Who may come in: the owner, signed-in browsers, API keys. Secrets are kept as hashes only."""

import time
from dataclasses import dataclass

from appliance.errors import PermissionDeniedError
from appliance.store.connection import Connection


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in browser. Only a hash of its token is kept."""

    id: int
    token_hash: str
    user_agent: str
    created: float
    expires: float
    seen: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key. Only its hash is kept; `prefix` is the part of it that people may see again."""

    id: int
    name: str
    prefix: str
    hash: str
    created: float
    used: float | None


class Accounts(Connection):
    """The tables of people and programs that are let in."""

    def create_owner(self, password_hash: str) -> None:
        """Make the one owner.

        Raises:
            PermissionDeniedError: there is one already; of two who try at once, the second gets this.
        """
        made = self.execute(
            "INSERT INTO owner (id, password_hash, created) VALUES (1, ?, ?) ON CONFLICT DO NOTHING",
            password_hash,
            time.time(),
        )
        if not made:
            raise PermissionDeniedError(
                "this Hob has an owner already", hint="Sign in with the owner's password."
            )

    def owner_hash(self) -> str | None:
        """The hash of the owner's password; None before there is an owner."""
        found = self.rows(dict[str, str], "SELECT password_hash FROM owner")
        return found[0]["password_hash"] if found else None

    def set_owner_hash(self, password_hash: str) -> None:
        """Replace the hash of the owner's password."""
        self.change("owner", "UPDATE owner SET password_hash = ?", password_hash)

    def remove_owner(self) -> bool:
        """Forget the owner's password and sign every browser out; False when there was no owner."""
        with self.atomic():
            self.execute("DELETE FROM sessions")
            return bool(self.execute("DELETE FROM owner"))

    def add_session(self, token_hash: str, expires: float, user_agent: str) -> Session:
        """Sign a browser in until `expires` (Unix time). Expired sessions are dropped on the way."""
        now = time.time()
        with self.atomic():
            self.execute("DELETE FROM sessions WHERE expires <= ?", now)
            session_id = self.insert(
                "sessions",
                token_hash=token_hash,
                user_agent=user_agent,
                created=now,
                expires=expires,
                seen=now,
            )
        return Session(session_id, token_hash, user_agent, now, expires, now)

    def session(self, token_hash: str) -> Session | None:
        """The session with this token, None when there is none or it has expired."""
        found = self.rows(
            Session, "SELECT * FROM sessions WHERE token_hash = ? AND expires > ?", token_hash, time.time()
        )
        return found[0] if found else None

    def list_sessions(self) -> list[Session]:
        """Sessions that have not expired, the most recently seen first."""
        return self.rows(Session, "SELECT * FROM sessions WHERE expires > ? ORDER BY seen DESC", time.time())

    def touch_session(self, session_id: int) -> None:
        """Note that a session was used now."""
        self.execute("UPDATE sessions SET seen = ? WHERE id = ?", time.time(), session_id)

    def revoke_session(self, session_id: int) -> None:
        """Sign a browser out."""
        self.change(f"session {session_id}", "DELETE FROM sessions WHERE id = ?", session_id)

    def revoke_sessions(self) -> int:
        """Sign every browser out; return how many."""
        return self.execute("DELETE FROM sessions")

    def add_key(self, name: str, key_hash: str, prefix: str) -> ApiKey:
        """Keep a new API key by its hash."""
        now = time.time()
        key_id = self.insert("api_keys", name=name, prefix=prefix, hash=key_hash, created=now)
        return ApiKey(key_id, name, prefix, key_hash, now, None)

    def keys(self) -> list[ApiKey]:
        """All API keys, oldest first."""
        return self.rows(ApiKey, "SELECT * FROM api_keys ORDER BY id")

    def key_by_hash(self, key_hash: str) -> ApiKey | None:
        """The key with this hash, None when there is none."""
        found = self.rows(ApiKey, "SELECT * FROM api_keys WHERE hash = ?", key_hash)
        return found[0] if found else None

    def touch_key(self, key_id: int) -> None:
        """Note that a key was used now."""
        self.execute("UPDATE api_keys SET used = ? WHERE id = ?", time.time(), key_id)

    def revoke_key(self, key_id: int) -> None:
        """Delete a key; requests that carry it are refused from now on."""
        self.change(f"key {key_id}", "DELETE FROM api_keys WHERE id = ?", key_id)
