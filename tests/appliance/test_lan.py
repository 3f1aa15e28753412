"""`hob serve --lan` on a real network: another machine finds it, and gets in only by session or key."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.appliance.lan import Lan, Machine, a_lan, missing, python, wait_for
from tests.service import HOB, MODEL, TINY, environment, run_hob

REASON = missing()
pytestmark = [pytest.mark.slow, pytest.mark.lan, pytest.mark.skipif(bool(REASON), reason=REASON)]

# What a device on the LAN does: one request, whose answer it prints.
VISIT = """
import json, sys
import httpx2 as httpx
request = json.loads(sys.argv[1])
with httpx.Client(trust_env=False, timeout=60) as client:
    answer = client.request(**request)
print(json.dumps({"status": answer.status_code, "headers": dict(answer.headers), "text": answer.text}))
"""


@dataclass(frozen=True)
class Answer:
    """What a visitor got."""

    status: int
    headers: dict[str, str]
    text: str


def visit(machine: Machine, method: str, url: str, **request: Any) -> Answer:
    """Send a request from a machine of the LAN."""
    given = json.dumps({"method": method, "url": url, **request})
    return Answer(**json.loads(machine.run(*python(VISIT, given))))


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """An empty LAN."""
    with a_lan(tmp_path) as lan:
        yield lan


@contextmanager
def serving(machine: Machine, data_dir: Path, *flags: str) -> Iterator[Path]:
    """`hob serve` on port 8080 of a machine until the block ends; its log."""
    log = data_dir / "serve.log"
    env = environment(data_dir, HOB_MODEL=MODEL)
    with machine.start(HOB, "serve", *flags, env=env, log=log) as process:
        wait_for(
            "Hob to be ready", lambda: "Hob is at " in log.read_text() or process.poll() is not None, 120
        )
        assert process.poll() is None, log.read_text()
        yield log
    assert "Traceback" not in log.read_text()


def test_another_machine_gets_in_by_session_or_key_alone(lan: Lan, data_dir: Path) -> None:
    """The whole story of a new Hob: set-up with the console's code, session, key, revocation, strangers."""
    server, visitor = lan.machine(), lan.machine()
    base = f"http://{server.address}:8080"
    browser = {"accept": "text/html", "origin": base}
    with serving(server, data_dir, "--lan") as log:
        assert visit(server, "GET", "http://127.0.0.1:8080/v1/models").status == 200
        assert visit(server, "GET", "http://[::1]:8080/").status == 200
        # Its own address on the LAN is not loopback.
        assert visit(server, "GET", f"{base}/v1/models").status == 401
        assert visit(visitor, "GET", f"{base}/v1/models").status == 401
        assert visit(visitor, "GET", f"{base}/healthz").status == 200
        led = visit(visitor, "GET", f"{base}/", headers=browser)
        assert (led.status, led.headers["location"]) == (303, "/setup")

        wait_for("the code on the console", lambda: "this code: " in log.read_text())
        code = re.search(r"this code: (\S+)", log.read_text())
        assert code is not None
        password = {"password": "a long password"}
        wrong = visit(
            visitor, "POST", f"{base}/setup", headers=browser, data={"code": "AAAA-AAAA", **password}
        )
        assert wrong.status == 403
        done = visit(visitor, "POST", f"{base}/setup", headers=browser, data={"code": code[1], **password})
        assert done.status == 303
        session = {"cookie": done.headers["set-cookie"].partition(";")[0]}
        assert visit(visitor, "GET", f"{base}/", headers=session).status == 200
        named = visit(visitor, "GET", f"{base}/", headers={**session, "host": "hob.local:8080"})
        assert named.status == 200
        rebound = visit(visitor, "GET", f"{base}/", headers={**session, "host": "evil.example:8080"})
        assert rebound.status == 403
        foreign = {**session, "origin": "http://evil.example"}
        assert visit(visitor, "POST", f"{base}/chats", headers=foreign, data={"text": "Hi"}).status == 403
        assert visit(visitor, "GET", f"{base}/", headers=browser).headers["location"] == "/login"

        key = run_hob(data_dir, "key", "add", "laptop").stdout.strip()
        bearer = {"authorization": f"Bearer {key}"}
        assert visit(visitor, "GET", f"{base}/v1/models", headers=bearer).status == 200
        question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        answer = visit(visitor, "POST", f"{base}/v1/chat/completions", headers=bearer, json=question)
        assert answer.status == 200
        assert json.loads(answer.text)["usage"]["completion_tokens"] >= 1
        assert visit(visitor, "GET", f"{base}/", headers=bearer).status == 401
        run_hob(data_dir, "key", "revoke", "1")
        assert visit(visitor, "GET", f"{base}/v1/models", headers=bearer).status == 401
        forged = {"x-forwarded-for": "127.0.0.1", "host": "127.0.0.1:8080"}
        assert visit(visitor, "GET", f"{base}/v1/models", headers=forged).status == 401

        out = visit(visitor, "POST", f"{base}/logout", headers={**browser, **session})
        assert out.status == 303
        assert visit(visitor, "GET", f"{base}/", headers={**browser, **session}).status == 303


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Two people with a browser each: one makes the Hob theirs and asks something, the other has no password.
BROWSE = """
import sys
from playwright.sync_api import sync_playwright

base, code, chromium = sys.argv[1:]
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    owner = browser.new_page()
    complaints = []
    owner.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    owner.goto(base)
    print(owner.url.removeprefix(base))
    owner.get_by_label("Code").fill(code)
    owner.get_by_label("password").fill("a long password")
    owner.get_by_role("button", name="Make it mine", exact=True).click()
    owner.get_by_label("Message").fill("Who are you?")
    owner.get_by_role("button", name="Send").click()
    owner.wait_for_url(base + "/chats/1*")
    print(owner.url.removeprefix(base).partition("#")[0])
    guest = browser.new_page()
    guest.goto(base + "/chats/1")
    print(guest.url.removeprefix(base))
    guest.get_by_label("Password").fill("a wrong password")
    guest.get_by_role("button", name="Sign in").click()
    print(guest.get_by_role("alert").inner_text())
    guest.get_by_label("Password").fill("a long password")
    guest.get_by_role("button", name="Sign in").click()
    guest.wait_for_url(base + "/chats/1")
    owner.goto(base + "/settings")
    owner.get_by_role("button", name="Sign out").click()
    owner.wait_for_url(base + "/login")
    print(complaints)
    browser.close()
"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_browsers_on_the_lan_set_up_and_sign_in(lan: Lan, data_dir: Path) -> None:
    """What real browsers send with forms and fetches over plain http passes; the policy breaks no page."""
    assert CHROMIUM
    server, visitor = lan.machine(), lan.machine()
    with serving(server, data_dir, "--lan") as log:
        wait_for("the code on the console", lambda: "this code: " in log.read_text())
        code = re.search(r"this code: (\S+)", log.read_text())
        assert code is not None
        told = visitor.run(*python(BROWSE, f"http://{server.address}:8080", code[1], CHROMIUM), timeout=120)
    assert told.splitlines() == [
        "/setup",
        "/chats/1",
        "/login?next=/chats/1",
        "The password is not right.",
        "[]",
    ]


def test_two_hobs_are_found_under_two_names(lan: Lan, data_dir: Path, tmp_path: Path) -> None:
    """The second becomes hob-2.local, answers to that name, and `hob discover` and Avahi list both."""
    first, second, visitor = lan.machine(), lan.machine(), lan.machine()
    avahi = lan.avahi(visitor, "neighbour")
    other_dir = tmp_path / "other"
    other_dir.mkdir()
    for folder in ("models", "libraries"):
        (other_dir / folder).symlink_to(data_dir / folder)
    with serving(first, data_dir, "--lan"):
        wait_for("hob.local", lambda: avahi.resolve("hob.local") == first.address)
        with serving(second, other_dir, "--lan") as log:
            wait_for("hob-2.local", lambda: avahi.resolve("hob-2.local") == second.address)
            wait_for("the console to say so", lambda: "http://hob-2.local:8080" in log.read_text())
            found = json.loads(visitor.run(HOB, "discover", "--json"))
            assert {(hob["host"], tuple(hob["addresses"])) for hob in found} >= {
                ("hob.local", (first.address,)),
                ("hob-2.local", (second.address,)),
            }
            assert {service[5] for service in avahi.services()} == {"hob.local", "hob-2.local"}
            named = {"host": "hob-2.local:8080"}
            assert visit(visitor, "GET", f"http://{second.address}:8080/login", headers=named).status == 303
            assert visit(visitor, "GET", f"http://{first.address}:8080/login", headers=named).status == 403
        wait_for("the goodbye", lambda: [service[5] for service in avahi.services()] == ["hob.local"])


def test_a_model_is_copied_by_the_name_of_its_hob(lan: Lan, data_dir: Path, tmp_path: Path) -> None:
    """`hob model copy NAME --from hob.local` finds the other Hob by multicast and gets in by its key."""
    server, visitor = lan.machine(), lan.machine()
    assert run_hob(data_dir, "model", "add", TINY, "--no-compile").returncode == 0
    key = run_hob(data_dir, "key", "add", "kitchen").stdout.strip()
    other_dir = tmp_path / "other"
    copy = (HOB, "model", "copy", TINY, "--from", "hob.local", "--no-compile", "--json")
    with serving(server, data_dir, "--lan"):
        refused = visitor.run("sh", "-c", '"$@" || true', "sh", *copy, env=environment(other_dir))
        assert "wants one of its API keys" in json.loads(refused.splitlines()[-1])["error"]
        done = visitor.run(*copy, env=environment(other_dir, HOB_API_KEY=key))
        assert json.loads(done.splitlines()[-1])["model"] == TINY
    assert run_hob(other_dir, "model", "verify", TINY).stdout == f"{TINY} is sound.\n"


def test_without_lan_nobody_outside_reaches_it(lan: Lan, data_dir: Path) -> None:
    """`hob serve` alone listens on loopback only and announces nothing."""
    server, visitor = lan.machine(), lan.machine()
    with serving(server, data_dir):
        assert visit(server, "GET", "http://127.0.0.1:8080/v1/models").status == 200
        refused = visitor.run(
            *python(
                "import socket, sys\n"
                "try: socket.create_connection((sys.argv[1], 8080), timeout=5)\n"
                "except ConnectionRefusedError: print('refused')",
                server.address,
            )
        )
        assert refused == "refused\n"
        assert json.loads(visitor.run(HOB, "discover", "--json", "--seconds", "1")) == []
