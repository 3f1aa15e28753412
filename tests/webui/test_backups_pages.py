"""The backups page without JavaScript: make, carry away, look into, restore; a real service behind it."""

import html
import http.client
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec
import pytest
from playwright.sync_api import Browser, expect

from appliance.backup import create, folder, keys
from appliance.backup.content import Model, Models
from appliance.backup.folder import Backup
from appliance.config import Settings, load_settings
from appliance.library.manifest import Origin
from appliance.store import Store
from tests.appliance.backup.conftest import ANSWER, PASSPHRASE, furnish, make
from tests.conftest import StartHob
from tests.service import Hob
from tests.webui.desk import PHONE, Desk
from webui import backups as page
from webui.upload import MAX_FIELD, PREFIX

LIMIT = 60  # seconds for Hob to start anew


def text(answer: httpx2.Response) -> str:
    """What a page says, without its markup."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", answer.text)))


def token(answer: httpx2.Response) -> str:
    """What the page's button sends to restore what was looked into."""
    found = re.search(r'name="token" value="([0-9a-f]{32})"', answer.text)
    assert found, text(answer)
    return found[1]


@pytest.fixture
def hob(start_hob: StartHob) -> Hob:
    """A fresh Hob with a real engine."""
    return start_hob()


@pytest.fixture
def client(hob: Hob) -> Iterator[httpx2.Client]:
    """A browser without JavaScript on the same machine."""
    with httpx2.Client(
        base_url=hob.url, headers={"origin": hob.url}, follow_redirects=True, timeout=60
    ) as client:
        yield client


@pytest.fixture
def house(tmp_path: Path) -> Settings:
    """Another Hob's data, with a passphrase."""
    settings = load_settings(data_dir=tmp_path / "house")
    furnish(settings.data_dir)
    keys.save(folder.of(settings.data_dir), keys.of_passphrase(PASSPHRASE, 1.0))
    return settings


@pytest.fixture
def backup(house: Settings) -> Backup:
    """A backup of the other Hob."""
    return make(house)


def send(client: httpx2.Client, path: Path, passphrase: str) -> httpx2.Response:
    """Upload a backup to look into it."""
    with path.open("rb") as stream:
        return client.post(
            "/backups/look", files={"file": (path.name, stream)}, data={"passphrase": passphrase}
        )


def test_restoring_on_a_fresh_hob(client: httpx2.Client, hob: Hob, backup: Backup) -> None:
    """Sent, looked into, confirmed: the same process comes up with the old chats, and answers questions."""
    looked = send(client, backup.path, PASSPHRASE)
    assert looked.status_code == 200, text(looked)
    assert "1 with 2 messages" in text(looked)
    assert "This Hob has no chats yet" in text(looked)
    assert ANSWER not in client.get("/").text
    taken = client.post("/backups/restore", data={"token": token(looked)})
    assert "Restoring" in text(taken)
    end = time.monotonic() + LIMIT
    while "Where is the marmalade?" not in client.get("/").text:
        assert time.monotonic() < end, "the restored chat does not appear"
        time.sleep(0.1)
    assert ANSWER in client.get("/chats/1").text
    assert hob.process.poll() is None
    while hob.get("/healthz")[0] != 200:
        assert time.monotonic() < end, "the engine does not come back"
        time.sleep(0.1)
    status, answered = hob.post(
        "/v1/chat/completions",
        {
            "model": hob.get("/v1/models")[1]["data"][0]["id"],
            "max_tokens": 4,
            "messages": [{"role": "user", "content": "Hi"}],
        },
    )
    assert status == 200, answered
    store = Store(hob.data_dir / "hob.db")
    assert store.owner_hash() == "the hash of a password"
    store.close()
    assert hob.stop() == 0


def test_from_setting_up_to_a_backup_on_another_hob(client: httpx2.Client, hob: Hob, tmp_path: Path) -> None:
    """Make one, set a passphrase, make another, download it; the first is for this machine only."""
    client.post("/chats", data={"text": "What is Hob?"})
    made = client.post("/backups/make", data={})
    assert "The backup is made." in text(made)
    assert "only this machine can read it" in text(made)
    assert "Download" not in made.text
    name = re.search(r'name="backup" value="([^"]+)"', made.text)
    assert name
    assert client.get(f"/backups/file?name={name[1]}").status_code == 409
    assert "differ" in text(
        client.post("/backups/passphrase", data={"passphrase": PASSPHRASE, "again": "x" * 12})
    )
    assert "at least 12" in text(
        client.post("/backups/passphrase", data={"passphrase": "short", "again": "short"})
    )
    done = client.post("/backups/passphrase", data={"passphrase": PASSPHRASE, "again": PASSPHRASE})
    assert "new passphrase" in text(done)
    assert PASSPHRASE not in done.text
    made = client.post("/backups/make", data={})
    link = re.search(r'href="(/backups/file\?name=[^"]+)"', made.text)
    assert link
    got = client.get(html.unescape(link[1]))
    assert got.headers["content-disposition"].startswith("attachment")
    file = tmp_path / "mine.hobbackup"
    file.write_bytes(got.content)
    wrong = send(client, file, "not this one at all")
    assert wrong.status_code == 403
    assert "passphrase is not right" in text(wrong)
    assert "1 chat with 2 messages" in text(send(client, file, PASSPHRASE))
    own = client.post("/backups/look", data={"backup": name[1]})
    assert "Restore this backup?" in text(own)
    gone = client.post("/backups/remove", data={"name": name[1]})
    assert "removed" in text(gone)
    assert name[1] not in gone.text
    assert PASSPHRASE not in hob.log.read_text()


def test_sticks(
    client: httpx2.Client, hob: Hob, backup: Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other path than a plugged-in stick's or a listed backup's is ever written to or opened."""
    elsewhere = client.post("/backups/make", data={"folder": str(tmp_path)})
    assert elsewhere.status_code == 400
    assert "is no stick" in text(elsewhere)
    for value in (str(backup.path), "../../etc/passwd", "", "/etc/passwd"):
        assert client.post("/backups/look", data={"backup": value}).status_code == 404
    assert client.get("/backups/file", params={"name": "../hob.db"}).status_code == 404
    # What counts as a stick, with a file system of this test's own for one.
    (tmp_path / "media" / "stick").mkdir(parents=True)
    monkeypatch.setattr(page, "ROOTS", (tmp_path / "media",))
    assert page.sticks() == []
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "stick")
    assert page.sticks() == [tmp_path / "media" / "stick"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "multipart/form-data", 400),
        (b"", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x", 400),
        (b"nonsense", "multipart/form-data; boundary=x", 400),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            400,
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n',
            "multipart/form-data; boundary=x",
            400,
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            422,
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n'
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="b"\r\n\r\nhello\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            400,
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
            + bytes(MAX_FIELD + 1)
            + b"\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
            400,
        ),
        (b"--x\r\n" + b"A" * 10_000 + b": b\r\n\r\nc\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
    ],
)
def test_forms_that_are_none(server: Hob, body: bytes, kind: str, status: int) -> None:
    """Each is refused on the page, and nothing of it stays on the disk."""
    answer = httpx2.post(
        f"{server.url}/backups/look", content=body, headers={"content-type": kind, "origin": server.url}
    )
    assert (answer.status_code, 'class="problem"' in answer.text) == (status, True), text(answer)
    assert not list((server.data_dir / folder.NAME).glob(f"{PREFIX}*"))


def test_a_file_larger_than_any_other_body(server: Hob, tmp_path: Path) -> None:
    """It goes to the disk piece by piece; one that finds no room there is refused before it is sent."""
    file = tmp_path / "large.hobbackup"
    with file.open("wb") as stream:
        stream.truncate(large := 6 * 2**20)
    assert large > load_settings().max_body
    with httpx2.Client(base_url=server.url, headers={"origin": server.url}, timeout=60) as client:
        assert "The file large.hobbackup is not a backup" in text(send(client, file, "x"))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {
        "content-type": "multipart/form-data; boundary=x",
        "content-length": str(2**36 - 1),
        "origin": server.url,
    }
    connection.putrequest("POST", "/backups/look")
    for header, value in headers.items():
        connection.putheader(header, value)
    connection.endheaders()
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    assert answer.status in (507, 413), said
    assert not list((server.data_dir / folder.NAME).glob(f"{PREFIX}*"))


def test_models_to_bring_back(client: httpx2.Client, hob: Hob) -> None:
    """What the restored backup lists and is not here has a button, if its source is known."""
    lost, filed, here = Origin("hub", "someone/lost"), Origin("file", "f"), Origin("file", "t")
    models = Model("lost", "1", 5_000_000, lost), Model("filed", "1", 1, filed), Model("tiny", "1", 1, here)
    (hob.data_dir / "restored-models.json").write_bytes(msgspec.json.encode(Models(models, "lost")))
    shown = client.get("/backups")
    assert "lost 5 MB · someone/lost · it answered by default" in text(shown)
    assert "filed" in text(shown)
    assert "tiny" not in text(shown)
    assert shown.text.count("Add again") == 1
    assert client.post("/backups/models", data={"model": "filed"}).status_code == 404
    added = client.post("/backups/models", data={"model": "lost"})
    assert "being added" in text(added)
    (job, *_) = client.get("/api/jobs").json()["jobs"]
    assert job["subject"] == "someone/lost"
    client.post(f"/jobs/{job['id']}/cancel")


@pytest.mark.browser
def test_by_hand_on_a_phone(chromium: Browser, start_hob: StartHob, backup: Backup) -> None:
    """On a phone without JavaScript: look into a file, read what it replaces, restore, find the chat."""
    hob = start_hob()
    desk = Desk(chromium, hob.url)
    screen = desk.open("/settings", java_script_enabled=False, **PHONE)
    screen.get_by_role("main").get_by_role("link", name="Backups").click()
    screen.get_by_label("A backup file").set_input_files(backup.path)
    screen.get_by_label("Its passphrase").last.fill(PASSPHRASE)
    screen.get_by_role("button", name="Look into it").last.click()
    expect(screen.get_by_role("heading", name="Restore this backup?")).to_be_in_viewport()
    assert screen.evaluate("document.documentElement.scrollWidth <= innerWidth") is True
    screen.get_by_role("button", name="Restore it").click()
    expect(screen.get_by_role("heading", level=1)).to_have_text("Restoring")
    expect(screen.get_by_role("heading", level=1)).to_have_text("Backups")  # by itself
    screen.goto("/chats/1")
    expect(screen.get_by_role("main")).to_contain_text(ANSWER)
    desk.close()
    assert desk.complaints == []


def test_a_passphrase_is_only_ever_text(house: Settings) -> None:
    """Whatever characters it has, it opens what it made."""
    odd = "ünïcode \t\"'<&%00\U0001f512 passphrase"
    keys.save(folder.of(house.data_dir), keys.of_passphrase(odd, 1.0))
    made = make(house, create.Request())
    assert made.header.kdf is not None
    assert keys.derive(odd, made.header.kdf).recipient in made.header.recipients
