"""The database's schema, as the steps that led to it. Steps are only ever added: an old file always opens.

A step only adds, too: tables, and columns that may be left out. The version before an update, to which a
device may return, runs on what the update made of the file; tests/appliance/test_downgrade.py holds that.

Ids are `AUTOINCREMENT`: they grow with time and are never given twice, so a stale link meets no other chat.
"""

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

migrations = Migrations("hob")


@migrations()
def chats_and_messages(db: Database) -> None:
    """Conversations and a full-text index over titles and texts, kept up to date by triggers."""
    db.executescript(
        """
        CREATE TABLE chats (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            title TEXT NOT NULL,
            model TEXT NOT NULL,
            created REAL NOT NULL,
            updated REAL NOT NULL
        );
        CREATE TABLE messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            chat_id INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
            parent INTEGER REFERENCES messages (id) ON DELETE CASCADE,
            role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
            content TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('running', 'done', 'stopped', 'error')),
            error TEXT NOT NULL DEFAULT '',
            model TEXT NOT NULL,
            settings TEXT NOT NULL DEFAULT '{}',
            finish TEXT,
            prompt_tokens INTEGER,
            completion_tokens INTEGER,
            timings TEXT,
            created REAL NOT NULL
        );
        CREATE INDEX messages_by_chat ON messages (chat_id);
        CREATE INDEX messages_by_parent ON messages (parent);
        CREATE INDEX messages_running ON messages (chat_id) WHERE state = 'running';
        """
    )
    for table, column in (("chats", "title"), ("messages", "content")):
        db.table(table).enable_fts([column], create_triggers=True, tokenize="unicode61 remove_diacritics 2")


@migrations()
def owner_sessions_keys(db: Database) -> None:
    """Who may come in. Secrets are kept as hashes only."""
    db.executescript(
        """
        CREATE TABLE owner (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            password_hash TEXT NOT NULL,
            created REAL NOT NULL
        );
        CREATE TABLE sessions (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            token_hash TEXT NOT NULL UNIQUE,
            user_agent TEXT NOT NULL,
            created REAL NOT NULL,
            expires REAL NOT NULL,
            seen REAL NOT NULL
        );
        CREATE TABLE api_keys (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL,
            prefix TEXT NOT NULL,
            hash TEXT NOT NULL UNIQUE,
            created REAL NOT NULL,
            used REAL
        );
        """
    )


@migrations()
def jobs_and_pins(db: Database) -> None:
    """Long work on models, and the models that stay in memory."""
    db.executescript(
        """
        CREATE TABLE jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            verb TEXT NOT NULL,
            subject TEXT NOT NULL,
            arguments TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'waiting'
                CHECK (state IN ('waiting', 'running', 'done', 'failed', 'cancelled', 'interrupted')),
            model TEXT NOT NULL DEFAULT '',
            error TEXT NOT NULL DEFAULT '',
            hint TEXT NOT NULL DEFAULT '',
            created REAL NOT NULL,
            started REAL,
            ended REAL
        );
        CREATE TABLE pins (model TEXT PRIMARY KEY);
        """
    )
