"""The models pages: adding, choosing, checking, exporting and removing models, with real work behind them."""

import html
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from tests.service import GOLDEN, TINY
from tests.webui.desk import PHONE, Desk
from tests.webui.site import Site, serve

CHECKPOINT = GOLDEN / "llama3rope" / "hf"
LIMIT = 120  # seconds for a piece of work


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, libraries: Path) -> Iterator[Site]:
    """A service that chooses its default model by itself."""
    folder = tmp_path_factory.mktemp("shop")
    with serve(folder, libraries, model=None) as site:
        site.engine.release()
        yield site


@pytest.fixture
def client(shop: Site) -> Iterator[httpx2.Client]:
    """A browser without JavaScript."""
    with httpx2.Client(
        base_url=shop.url, headers={"origin": shop.url}, follow_redirects=True, timeout=60
    ) as client:
        yield client


def text(page: httpx2.Response) -> str:
    """What a page says, without its markup."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.text)))


def finished(client: httpx2.Client) -> list[dict[str, object]]:
    """The jobs once none is open, newest first."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        jobs: list[dict[str, object]] = client.get("/api/jobs").json()["jobs"]
        if all(job["state"] not in ("waiting", "running") for job in jobs):
            return jobs
        time.sleep(0.1)
    pytest.fail("the work does not end")


def installed(client: httpx2.Client) -> dict[str, dict[str, object]]:
    """The models by name."""
    return {model["name"]: model for model in client.get("/api/models").json()["models"]}


def test_a_models_life(client: httpx2.Client, tmp_path: Path) -> None:
    """Looked at, added, chosen, pinned, checked, compiled, taken away as a file, removed: by forms alone."""
    source = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, source)
    page = client.post("/models/look", data={"source": str(source)})
    assert page.status_code == 200
    assert "Add checkpoint-q4f16_1?" in text(page)
    assert "It fits: it takes" in text(page)
    assert installed(client).keys() == {"hob-guide", TINY}

    page = client.post("/models", data={"source": str(source), "name": "mine"})
    assert f"Adding {source}" in text(page)
    job = finished(client)[0]
    assert (job["state"], job["model"]) == ("done", "mine"), job
    assert "mine" in re.findall(r"<option[^>]*>([^<]+)", client.get("/").text), "the picker offers it at once"
    assert "adding" in text(client.get(f"/jobs/{job['id']}")).lower()

    assert client.post("/models/default", data={"model": "mine"}).status_code == 200
    client.post("/models/pin", data={"model": "mine", "pinned": "yes"})
    now = installed(client)["mine"]
    assert (now["default"], now["pinned"]) == (True, True)
    assert now["origin"] == "checkpoint", "where it was here is nobody else's business"
    assert "kept in memory" in text(client.get("/models"))
    client.post("/models/pin", data={"model": "mine", "pinned": ""})
    assert not installed(client)["mine"]["pinned"]

    for verb in ("verify", "compile"):
        client.post(f"/models/{verb}", data={"model": "mine"})
        assert [finished(client)[0][key] for key in ("verb", "state")] == [verb, "done"]

    file = tmp_path / "mine.hobmodel"
    with client.stream("GET", "/models/file", params={"model": "mine"}) as answer:
        assert 'filename="mine.hobmodel"' in answer.headers["content-disposition"]
        file.write_bytes(answer.read())
    with tarfile.open(file) as archive:
        assert archive.getnames()[0] == "hob-model.json"
    page = client.post("/models/look", data={"source": str(file)})
    assert "Add mine?" in text(page)

    assert client.post("/models/remove", data={"model": "mine"}).status_code == 200
    assert installed(client).keys() == {"hob-guide", TINY}
    assert installed(client)["hob-guide"]["default"]


@pytest.mark.parametrize(
    ("path", "fields", "status", "problem"),
    [
        ("/models/look", {"source": "/nowhere/at/all"}, 400, "nowhere"),
        ("/models/look", {"source": "folder"}, 400, "folder"),
        ("/models/look", {"source": "<b>"}, 400, "<b>"),
        ("/models", {"source": "../models"}, 400, "../models"),
        ("/models/remove", {"model": "hob-guide"}, 400, "built in"),
        ("/models/remove", {"model": "absent"}, 404, "absent"),
        ("/models/verify", {"model": "absent"}, 404, "absent"),
        ("/models/export", {"model": TINY, "folder": "/nowhere"}, 400, "not a folder of this machine"),
        ("/models/explode", {"model": TINY}, 404, "explode"),
        ("/models/default", {"model": "../../etc"}, 404, "../../etc"),
    ],
)
def test_wishes_that_cannot_be_granted(
    client: httpx2.Client, path: str, fields: dict[str, str], status: int, problem: str
) -> None:
    """The page comes back with the reason above it, and nothing has changed."""
    before = installed(client).keys()
    page = client.post(path, data=fields)
    assert page.status_code == status
    alert = re.search(r'<div class="alert" role="alert">(.*?)</div>', page.text, re.DOTALL)
    assert alert
    assert problem in html.unescape(alert[1])
    assert installed(client).keys() == before


def test_work_is_cancelled_and_begun_again(client: httpx2.Client, tmp_path: Path) -> None:
    """Cancelling leaves no model; a failed piece of work says why, keeps its log and can be tried again."""
    source = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, source)
    client.post("/models", data={"source": str(source), "name": "never"})
    newest = client.get("/api/jobs").json()["jobs"][0]
    page = client.post(f"/jobs/{newest['id']}/cancel")
    assert "cancelled" in text(page)
    assert "never" not in installed(client)

    (source / "model.safetensors").write_bytes(b"not one")
    page = client.post(f"/jobs/{newest['id']}/again")
    assert page.status_code == 200
    failed = finished(client)[0]
    assert failed["state"] == "failed"
    assert "model.safetensors" in str(failed["error"])
    assert "Try again" in client.get(f"/jobs/{failed['id']}").text


def test_the_catalogue_says_what_fits(client: httpx2.Client) -> None:
    """Every entry has its verdict on the page and in the API, before anything is fetched."""
    known = client.get("/api/catalogue").json()["models"]
    shown = text(client.get("/models"))
    for entry in known:
        assert entry["name"] in shown
        assert entry["fit"] in ("fits", "not now", "never")
        assert entry["memory"] > entry["download"] / 10


@pytest.mark.browser
def test_adding_a_model_in_a_browser(chromium: Browser, shop: Site, tmp_path: Path) -> None:
    """Progress shows without a reload, the new model appears by itself, and it is all done by keyboard."""
    source = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, source)
    desk = Desk(chromium, shop.url)
    page = desk.open("/models", **PHONE)
    page.get_by_label("Where it is").fill(str(source))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Add checkpoint-q4f16_1?")).to_be_visible()
    page.get_by_label("Name here").fill("browsed")
    page.keyboard.press("Enter")
    work = page.get_by_role("region", name="Work")
    expect(work.get_by_text(f"Adding {source}").first).to_be_visible()
    expect(work.locator(".job").first).to_have_attribute("data-state", "done", timeout=LIMIT * 1000)
    expect(page.locator("#installed").get_by_text("browsed", exact=True)).to_be_visible()
    page.get_by_label("More for browsed").click()
    page.locator("li.model", has_text="browsed").get_by_text("Remove…").click()
    page.get_by_role("button", name="Remove browsed").click()
    expect(page.locator("#installed").get_by_text("browsed", exact=True)).to_have_count(0)
    desk.close()
    assert desk.complaints == []


@pytest.mark.browser
def test_an_answer_says_that_its_model_is_being_compiled(
    chromium: Browser, shop: Site, libraries: Path, tmp_path: Path
) -> None:
    """The first question to a model that nobody compiled shows how far that is, then the answer."""
    (tmp_path / "models").mkdir()
    shutil.copytree(GOLDEN / "llama3rope" / "q4f16_1", tmp_path / "models" / "fresh")
    config = tmp_path / "models" / "fresh" / "mlc-chat-config.json"
    # Another context makes another library: one that is not there yet.
    config.write_text(
        config.read_text().replace('"context_window_size": 1024', '"context_window_size": 1000')
    )
    shutil.move(tmp_path / "models" / "fresh", shop.folder / "models" / "fresh")
    desk = Desk(chromium, shop.url)
    page = desk.open()
    page.locator("select[name=model]").select_option("fresh")
    page.get_by_label("Message").fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator(".status .words")).to_contain_text("Preparing the model for this machine")
    expect(page.locator(".turn.assistant").last).to_have_attribute("data-state", "done", timeout=LIMIT * 1000)
    desk.close()
    assert desk.complaints == []
