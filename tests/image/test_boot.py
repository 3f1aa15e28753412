"""The image for PCs from its first start on: no network, no stranger, answers, a power cut, a full disk.

One disk lives through it all. A fixture brings the machine to the next point of its life, in the order of
this file; the tests look at what is there.
"""

import json
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from appliance import ballast
from tests.image import people
from tests.image.emulator import Emulator
from tests.image.home import GUEST_PORTS, Home, flashed
from tests.image.machine import Machine
from tests.image.people import WAIT, Owner
from tests.webui.desk import answer, ask

pytestmark = pytest.mark.image

QUESTION = "What is Hob?"
LONG = "How do I add a model, and what does it need?"


@pytest.fixture(scope="module")
def home(
    emulator: Emulator, image: Path, accelerator: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Home]:
    """A freshly flashed machine; its owner has put a set-up code on the boot partition."""
    home = flashed(emulator, image, tmp_path_factory.mktemp("pc"), accelerator)
    yield home
    home.kill()


@pytest.fixture(scope="module")
def owner(home: Home, chromium: Browser) -> Owner:
    """After the first visit, made through the real page."""
    return people.set_up(chromium, home.on().url)


@dataclass
class Cut:
    """What was on the disk for sure when the plug was pulled: so many characters of the running answer."""

    chat: str
    answered: str
    written: int
    owner: Owner


@pytest.fixture(scope="module")
def cut(home: Home, owner: Owner, chromium: Browser) -> Cut:
    """After the plug was pulled while an answer was being written, and a new start."""
    page = owner.page
    page.goto("/")
    answered = owner.ask(QUESTION)
    ask(page, LONG)
    expect(page.locator(".turn.assistant")).to_have_count(2, timeout=WAIT)
    # The page as the server has it on disk, not as the browser has it from the stream.
    while not (
        found := re.search(r'data-events="[^"]*\?from=([1-9]\d*)"', owner.page.request.get(page.url).text())
    ):
        assert answer(page).get_attribute("data-state") == "running", "the answer ended before the cut"
    home.kill()
    chat = page.url.removeprefix(home_url(page.url))
    owner.close()
    return Cut(chat, answered, int(found[1]), people.sign_in(chromium, home.on().url))


def home_url(url: str) -> str:
    """The part of an address before the path."""
    return "/".join(url.split("/")[:3])


def status(url: str, method: str = "GET") -> int:
    """What a stranger's browser or program is answered with; redirects are not followed."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    data = b"{}" if method == "POST" else None
    headers = {"content-type": "application/json", "accept": "text/html, application/json"}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_it_comes_up_without_a_network(home: Home) -> None:
    """The service says that its model answers, though the machine reaches nobody."""
    machine = home.on()
    code, health = machine.get("/healthz")
    assert (code, json.loads(health)) == (200, {"status": "ok"})


def test_only_the_page_is_open(home: Home) -> None:
    """Of the ports that systems leave open by mistake none is, SSH least of all."""
    machine = home.on()
    with ThreadPoolExecutor(
        len(GUEST_PORTS)
    ) as pool:  # the firewall drops, so every look takes its full time
        looks = pool.map(machine.is_open, GUEST_PORTS)
    assert [port for port, is_open in zip(GUEST_PORTS, looks, strict=True) if is_open] == [80]


def test_nobody_gets_in_before_there_is_an_owner(home: Home) -> None:
    """A stranger is led to the set-up page and finds nothing else, and guesses of the code are refused."""
    url = home.on().url
    for path in ("/", "/chats/1", "/settings", "/system", "/models"):
        assert status(url + path) == 303, path
    for path in ("/v1/models", "/api/system", "/api/library", "/api/jobs"):
        assert status(url + path) in (401, 403), path
    assert status(f"{url}/v1/chat/completions", "POST") in (401, 403)


def test_the_first_visit_leads_to_an_answer(home: Home, owner: Owner) -> None:
    """By the code on the boot partition and a password the owner comes in; the built-in model answers."""
    said = owner.ask(QUESTION)
    assert "Hob" in said
    assert len(said.split()) > 5
    owner.page.screenshot(path=home.folder / "first-answer.png")


def test_the_owner_gets_a_key_and_a_program_an_answer(home: Home, owner: Owner) -> None:
    """A key made on the settings page opens the API; its answers come from the built-in model."""
    owner.page.goto("/settings")
    owner.page.get_by_label("Name of the new key").fill("a program")
    owner.page.get_by_role("button", name="Make a key").click()
    key = owner.page.locator(".fresh code").inner_text()
    url = f"{home.machine.url}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "model": "hob-guide"}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=WAIT / 1000) as response:
        completion = json.load(response)
    assert completion["choices"][0]["message"]["content"].strip()


def test_nobody_else_gets_in_afterwards(home: Home, owner: Owner) -> None:
    """With an owner there is no set-up any more, and nothing without the password."""
    url = home.machine.url
    for path in ("/", "/chats/1", "/settings", "/system", "/models"):
        assert status(url + path) == 303, path
    assert status(f"{url}/v1/models") == 401


def test_the_data_partition_has_grown(home: Home, owner: Owner) -> None:
    """The whole disk is there for models, not what the image was packed with."""
    owner.page.goto("/system")
    said = owner.page.get_by_role("main").inner_text()
    free = re.search(r"([\d.]+) ([GM]B) free of ([\d.]+) GB, under /var/lib/hob", said)
    assert free, said
    home_size = home.disk.path.stat().st_size / 1e9
    assert float(free[3]) > home_size / 4


def test_a_power_cut_costs_nothing_that_was_acknowledged(home: Home, cut: Cut) -> None:
    """After a cut in the middle of an answer the chat has what was saved and says what became of the rest."""
    page = cut.owner.page
    page.goto(cut.chat)
    expect(page.locator(".turn.user .text")).to_have_text([QUESTION, LONG])
    assert page.locator(".turn.assistant .text").first.inner_text() == cut.answered
    expect(answer(page)).to_have_attribute("data-state", "stopped")
    expect(answer(page).locator(".remark")).to_contain_text("Interrupted")
    assert cut.owner.ask("Are you well?")
    page.screenshot(path=home.folder / "after-the-cut.png")


def test_the_database_survives_a_power_cut(home: Home, cut: Cut, tmp_path: Path) -> None:
    """Shut down properly, it leaves a sound disk, and on it a sound database with every saved character."""
    home.off()
    for suffix in ("", "-wal"):
        if f"hob.db{suffix}" in home.disk.listing("lib/hob"):
            home.disk.dump(f"lib/hob/hob.db{suffix}", tmp_path / f"hob.db{suffix}")
    database = sqlite3.connect(tmp_path / "hob.db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    rows = database.execute("SELECT content FROM messages WHERE role = 'assistant' AND state = 'stopped'")
    (content,) = [content for (content,) in rows]
    assert len(content) >= cut.written
    database.close()


def test_a_full_disk_locks_nobody_out(home: Home, cut: Cut, chromium: Browser) -> None:
    """With no block left on the data partition it starts, answers, says what is wrong, and gets over it."""
    home.off()
    assert ballast.FILE in home.disk.listing("lib/hob")
    home.disk.fill("lib/filler", left=0)
    owner = people.sign_in(chromium, home.on().url)
    expect(owner.page.get_by_label("About this machine")).to_contain_text("The disk is full")
    owner.page.screenshot(path=home.folder / "full.png")
    assert owner.ask("How do I free some room?")
    home.off()
    home.disk.remove("lib/filler")
    owner = people.sign_in(chromium, home.on(probe=True).url)
    expect(owner.page.get_by_label("About this machine")).to_have_count(0)
    assert owner.ask("Is there room now?")


@pytest.fixture(scope="module")
def inside(home: Home) -> Machine:
    """The same machine with a root shell in it."""
    return home.on(probe=True)


def test_nothing_failed(inside: Machine) -> None:
    """Every unit of the system came up, and nothing waits any more."""
    assert inside.probe("systemctl is-system-running --wait", 200).strip() == "running"


def test_nothing_else_listens(inside: Machine) -> None:
    """Only the service takes connections; besides it there are mDNS and the clients of DHCP."""
    tcp = {line.split()[3] for line in inside.probe("ss -Hltn").splitlines()}
    assert {address.rpartition(":")[2] for address in tcp} == {"80"}
    udp = {line.split()[3].rpartition(":")[2] for line in inside.probe("ss -Hlun").splitlines()}
    assert udp <= {"5353", "68", "546"}


def test_the_firewall_drops_what_is_not_listed(inside: Machine) -> None:
    """The rules are loaded, and what they do not name is dropped."""
    rules = inside.probe("nft list chain inet hob input")
    assert "policy drop" in rules
    assert "tcp dport { 80, 443, 11434 } accept" in rules


def test_the_root_cannot_be_written(inside: Machine) -> None:
    """The system is read-only, data and logs lie on the data partition, and memory is compressed."""
    assert inside.probe("findmnt -no FSTYPE,OPTIONS /").startswith("squashfs ro")
    assert inside.probe("findmnt -no FSTYPE,SOURCE /var").split() == ["ext4", "/dev/vda4"]
    assert inside.probe("findmnt -no OPTIONS /boot").startswith("ro")
    assert "/dev/zram0" in inside.probe("cat /proc/swaps")
    assert "/var/log/journal/" in inside.probe("journalctl --header | grep 'File path'")


def test_there_is_no_password(inside: Machine) -> None:
    """No account can be signed in to, no program changes its user, and no terminal offers a login."""
    fields = [line.split(":")[1] for line in inside.probe("cat /etc/shadow").splitlines()]
    assert fields
    assert all(field.startswith(("!", "*")) for field in fields)
    assert inside.probe("find / -xdev -perm /6000 -type f") == ""
    assert inside.probe("systemctl list-units --no-legend 'getty@*' 'serial-getty@*' 'ssh*'") == ""


def test_starts_lie_in_one_journal(inside: Machine) -> None:
    """The journal has every start since the first, so that what led to a cut can be read afterwards."""
    assert len(json.loads(inside.probe("journalctl --list-boots -o json"))) >= 4


def test_the_engine_may_not_take_all_memory(inside: Machine) -> None:
    """Beyond its share the kernel ends the engine and nothing else; it starts again and answers."""
    service = inside.probe("systemctl show --value -p MainPID hob.service")
    limit = "systemctl set-property --runtime hob-engine.service {}"
    inside.probe(limit.format("MemorySwapMax=0"))  # first, or what is too much is moved there
    inside.probe(limit.format("MemoryMax=8M"))
    inside.probe("until journalctl -b -u hob-engine | grep -q oom-kill; do sleep 1; done", 120)
    inside.probe(limit.format("MemoryMax=80% MemorySwapMax=infinity"))
    inside.wait()
    assert inside.probe("systemctl show --value -p MainPID hob.service") == service
    assert inside.probe("systemctl --failed --no-legend") == ""
