"""A house with something to lose, and a fresh one."""

from pathlib import Path

import pytest

from appliance.backup import create, folder, keys, pending, restore
from appliance.backup.folder import Backup
from appliance.config import Settings, load_settings
from appliance.security.keys import add_key
from appliance.store import Store

PASSPHRASE = "correct horse battery staple"
ANSWER = "The marmalade stands on the top shelf."


def quiet(step: str, fraction: float) -> None:
    """Nobody watches."""


def furnish(data_dir: Path) -> None:
    """A chat, an owner, a key, a pinned model, a signed-in browser and a job."""
    store = Store(data_dir / "hob.db")
    question, answer = store.ask(None, "Where is the marmalade?", "tiny", {})
    store.finish(answer.id, state="done", content=ANSWER, finish="stop")
    store.create_owner("the hash of a password")
    store.add_session("the hash of a token", 2**40, "a browser")
    add_key(store, "kitchen radio")
    store.pin("tiny")
    store.add_job("add", "owner/name", ["owner/name"])
    store.close()
    assert question.chat_id == 1


@pytest.fixture
def house(tmp_path: Path) -> Settings:
    """A data folder that people have used, and that has a passphrase."""
    settings = load_settings(data_dir=tmp_path / "house", context=2048)
    furnish(settings.data_dir)
    keys.save(folder.of(settings.data_dir), keys.of_passphrase(PASSPHRASE, 1.0))
    return settings


@pytest.fixture
def fresh(tmp_path: Path) -> Settings:
    """A data folder that nobody has used."""
    return load_settings(data_dir=tmp_path / "fresh")


@pytest.fixture
def backup(house: Settings) -> Backup:
    """A backup of the house."""
    return make(house)


def make(house: Settings, request: create.Request | None = None) -> Backup:
    """A new backup."""
    made = create.create(house, request or create.Request(), quiet)
    assert made is not None
    return made


def bring(path: Path, settings: Settings, passphrase: str = PASSPHRASE) -> None:
    """Restore as `hob backup restore` does where no service runs."""
    ready = restore.prepare(path, settings.data_dir, quiet, passphrase=passphrase)
    restore.commit(settings.data_dir, ready.token)
    assert pending.apply(settings) is not None


def chats(settings: Settings) -> list[str]:
    """All that was ever said, oldest first."""
    store = Store(settings.data_dir / "hob.db")
    try:
        return [message.content for chat in reversed(store.chats()) for message in store.thread(chat.id)]
    finally:
        store.close()
