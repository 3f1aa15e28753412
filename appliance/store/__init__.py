"""Everything Hob remembers, in one SQLite file.

store = Store(settings.data_dir / "hob.db")
chats = await store.run(store.chats)
"""

from appliance.store.accounts import Accounts, ApiKey, Session
from appliance.store.chats import (
    INTERRUPTED,
    Chat,
    Chats,
    SearchHit,
    Speed,
    State,
    StoredMessage,
    newest_branch,
    title_of,
)
from appliance.store.jobs import Job, Jobs, JobState

__all__ = [
    "INTERRUPTED",
    "ApiKey",
    "Chat",
    "Job",
    "JobState",
    "SearchHit",
    "Session",
    "Speed",
    "State",
    "Store",
    "StoredMessage",
    "newest_branch",
    "title_of",
]


class Store(Chats, Accounts, Jobs):
    """All tables; see `Connection` for threads, durability and errors."""
