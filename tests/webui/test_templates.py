"""Every page prints, from declared fields alone, as sound HTML that fetches nothing from elsewhere."""

import re
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import meta
from markupsafe import Markup

from webui import assets, backup_pages, device_pages, model_pages, pages, update_pages
from webui.rendering import environment, to_html

TEMPLATES = Path(pages.__file__).parent / "templates"
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}

SIDEBAR = pages.Sidebar(
    [
        pages.ChatGroup("Today", [pages.ChatLink(3, "Bread & <butter>", True)]),
        pages.ChatGroup("Earlier", [pages.ChatLink(1, "Older", False)]),
    ],
    "bread",
)
ONE = [pages.ModelChoice("hob-guide", True)]
TWO = [*ONE, pages.ModelChoice("llama", False)]
TURNS = [
    pages.Turn(1, 3, "user", "You", "done", text="a < b\nc"),
    pages.Turn(
        2, 3, "assistant", "hob-guide", "done", html=Markup("<p>yes</p>"), stats="2 tokens · 9.0 tokens/s"
    ),
    pages.Turn(3, 3, "user", "You", "done", text="and?"),
    pages.Turn(4, 3, "assistant", "hob-guide", "stopped", problem="Stopped."),
    pages.Turn(5, 3, "user", "You", "done", text="and?"),
    pages.Turn(6, 3, "assistant", "hob-guide", "error", problem="No answer.", hint="Try <again>.", last=True),
]
RUNNING = pages.Turn(8, 3, "assistant", "hob-guide", "running", html=Markup("<p>so</p>"), offset=2, last=True)
STOP = "/chats/3/messages/8/stop"
JOBS = [
    model_pages.JobRow(3, "Adding <a>", "running", "fetching · 1 MB/s", 40, "", "", ""),
    model_pages.JobRow(2, "Adding b", "waiting", "waits", None, "", "", ""),
    model_pages.JobRow(1, "Adding c", "failed", "failed", None, "No <model>.", "Look.", ""),
]
MODELS = [
    model_pages.LibraryRow("hob-guide", "5 M", "", "A guide.", "", "", ["default"], True, False, True),
    model_pages.LibraryRow(
        "a<b", "1 GB", "from a/b", "", "", "Too large.", ["kept in memory"], False, True, False
    ),
    model_pages.LibraryRow("broken", "", "", "", "a.bin is <missing>", "", [], False, False, False),
]

SAMPLES: list[pages.Page] = [
    pages.SetupPage(None),
    pages.SetupPage("The code is not <right>."),
    pages.LoginPage(None, "/"),
    pages.LoginPage("The password is not right.", "/chats/3?a=b&c"),
    pages.ErrorPage(404, "There is no chat 7.", ""),
    pages.ErrorPage(503, "The engine is starting.", "Try again in a second."),
    pages.HomePage(pages.Sidebar([]), pages.Composer("/chats", []), "", ()),
    pages.HomePage(SIDEBAR, pages.Composer("/chats", ONE), "A guide.", ("What is Hob?", 'Say "hi"')),
    pages.HomePage(
        SIDEBAR,
        pages.Composer("/chats", TWO, None, "Hob is waking up.", "<dr\naft>", "Too long.", "Cut it."),
        "",
        (),
    ),
    pages.ChatPage(SIDEBAR, pages.Composer("/chats/3/messages", ONE), 3, "Bread & <b>", "", TURNS, None),
    pages.ChatPage(
        SIDEBAR,
        pages.Composer("/chats/3/messages", TWO, STOP),
        3,
        "T",
        "A guide.",
        [*TURNS[:1], RUNNING],
        "/chats/3?look=1#m8",
    ),
    pages.TurnFragment(TURNS[1]),
    pages.SearchPage(SIDEBAR, "", []),
    pages.SearchPage(SIDEBAR, "<none>", []),
    pages.SearchPage(SIDEBAR, "b", [pages.Hit("/chats/3#m1", "Bread <", [("a < ", False), ("b", True)])]),
    pages.SettingsPage(SIDEBAR, [], Markup(), "http://x/v1", [], "", False, "0.1.0"),
    pages.SettingsPage(
        SIDEBAR,
        ["http://hob.local", "http://10.0.0.2"],
        Markup("<svg></svg>"),
        "http://x/v1",
        [pages.KeyRow(1, "kitchen <", "hob_abc", "never used")],
        "hob_secret",
        True,
        "0.1.0",
    ),
    pages.SystemPage(SIDEBAR, [], [], [], "", [], "", True, []),
    pages.SystemPage(
        SIDEBAR,
        [pages.Fact("Processor", "Cortex-A76 <4 cores>")],
        [
            pages.DeviceRow("CUDA", "Orin", "failed", "nvcc is missing.", "Install <it>."),
            pages.DeviceRow("Processor", "Cortex-A78AE", "in use", "Runs every model.", ""),
        ],
        ["llama on cuda-sm_87: nvcc is missing"],
        "Medium: models of up to about 1.4 billion weights.",
        [pages.Fact("Memory is read at", "9.8 GB/s")],
        "other programs leave no time",
        False,
        [pages.Fact("Version", "0.1.0")],
    ),
    model_pages.ModelsPage(SIDEBAR, [], [], False, [], [], [], None, None, "", "", "", "1 GB are free."),
    model_pages.ModelsPage(
        SIDEBAR,
        MODELS,
        JOBS,
        True,
        [
            model_pages.KnownRow("Small", "o/n@main", "Good <for>", "English", "1 GB", "Fits", True, False),
            model_pages.KnownRow("Big", "o/b@main", "More", "English", "9 GB", "Too large", False, True),
        ],
        [model_pages.Place("/media/<stick>/a.gguf", "1 GB")],
        ["/media/stick"],
        [model_pages.Place("hob-2.local", "0.1.0")],
        model_pages.PlanCard("/a<b", "b", [("Where", "/a<b")], "It does not fit.", False),
        "/a<b",
        "There is no <model>.",
        "Look again.",
        "1 GB are free.",
    ),
    model_pages.ModelsPage(
        SIDEBAR,
        MODELS,
        JOBS[2:],
        False,
        [],
        [],
        [],
        [],
        model_pages.PlanCard("a/b", "b", [("Where", "a/b")], "It fits.", True),
        "",
        "",
        "",
        "1 GB are free.",
    ),
    update_pages.UpdatesPage(
        SIDEBAR, [], "", False, False, "", None, False, "", [], "", False, "", "1 GB", "Not <here>.", "Look."
    ),
    update_pages.UpdatesPage(
        SIDEBAR,
        [pages.Fact("Runs", "0.2.0"), pages.Fact("Other slot", "0.1.0")],
        "0.3.0 was tried, and 0.2.0 runs again: the <model> is damaged.",
        True,
        True,
        "0.1.0",
        None,
        False,
        "0.2.<0>",
        [update_pages.Stick("/media/<stick>/hob.raucb", "300 MB")],
        "http://laptop/hob.manifest.json",
        True,
        "0.3.0 is there.",
        "1 GB",
        "",
        "",
    ),
    update_pages.UpdatesPage(
        SIDEBAR,
        [],
        "",
        False,
        False,
        "",
        update_pages.Work("Installing <hob>.raucb", "Copying image to rootfs.1", 40),
        False,
        "",
        [],
        "",
        False,
        "",
        "1 GB",
        "",
        "",
    ),
    update_pages.UpdatesPage(
        SIDEBAR, [], "", False, False, "", None, True, "", [], "http://a/b", False, "", "1 GB", "", ""
    ),
    device_pages.DevicePage(
        SIDEBAR,
        True,
        [pages.Fact("Cable", "192.168.1.7")],
        "kitchen",
        "Europe/Berlin",
        True,
        "<home>",
        "<home> is not in reach.",
        "DE",
        [device_pages.Network("<cafe>", "weak, open: anybody can listen", False, True)],
        "ssh-ed25519 AAAA me",
        ["SHA256:abc"],
        "2026-01-01T12:00",
        ["hob.toml: hostname: must be letters."],
        "The clock is set.",
        "",
        "",
    ),
    device_pages.DevicePage(
        SIDEBAR, False, [], "", "", False, "", "", "", None, "", [], "", [], "", "Not here.", "Use <it>."
    ),
    model_pages.JobPage(SIDEBAR, JOBS[:1], ""),
    model_pages.JobPage(SIDEBAR, JOBS[2:], "<said>\n"),
    backup_pages.BackupsPage(
        SIDEBAR, "There is none.", "", [], [], [], False, "No passphrase is set.", None, [], "", "", ""
    ),
    backup_pages.BackupsPage(
        SIDEBAR,
        "The last one was made today.",
        "The disk is <full>.",
        [
            backup_pages.BackupRow("a&b.hobbackup", "Today, 3:30", "made at night · 5 kB", True, True, True),
            backup_pages.BackupRow("b.hobbackup", "Today, 3:31", "made by hand · 5 kB", False, False, True),
        ],
        [backup_pages.BackupRow("/media/<a>/c.hobbackup", "Today, 3:32", "from hob", True, True, False)],
        ["/media/<a>"],
        True,
        "A passphrase was set.",
        backup_pages.RestoreCard("0123", [("From", "h<o>b")], "This replaces <all>.", ["It has no owner."]),
        [
            backup_pages.MissingRow("a<b", "5 MB · owner/name", True),
            backup_pages.MissingRow("filed", "5 MB · from a file", False),
        ],
        "The passphrase is not <right>.",
        "Try another.",
        "The backup is made.",
    ),
    backup_pages.RestoringPage(True),
    backup_pages.RestoringPage(False),
]
IDS = [f"{type(page).__name__}-{number}" for number, page in enumerate(SAMPLES)]


def page_types() -> list[type[pages.Page]]:
    """Every page that exists."""
    return pages.Page.__subclasses__()


def family(name: str) -> set[str]:
    """A template with all that it extends and includes."""
    source = (TEMPLATES / name).read_text(encoding="utf-8")
    found = {name}
    for other in meta.find_referenced_templates(environment.parse(source)):
        assert other is not None, f"{name} names a template by a variable"
        found |= family(other)
    return found


def variables(name: str) -> set[str]:
    """The names a single template takes from its context."""
    source = (TEMPLATES / name).read_text(encoding="utf-8")
    return meta.find_undeclared_variables(environment.parse(source)) - set(environment.globals)


class Document(HTMLParser):
    """A parsed page; raises AssertionError where elements are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def every(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_page_has_a_sample() -> None:
    """The samples below cover all pages, and the pages all templates."""
    assert {type(page) for page in SAMPLES} == set(page_types())
    used = set().union(*(family(page.template) for page in page_types()))
    assert used == {path.name for path in TEMPLATES.iterdir()}


@pytest.mark.parametrize("page", page_types(), ids=lambda page: page.__name__)
def test_templates_use_the_declared_fields(page: type[pages.Page]) -> None:
    """A template takes from its context the page's fields: no others, and all of them."""
    inner = {"turn"} if page is pages.ChatPage else set()  # the loop's, for the template it includes
    used = set().union(*(variables(name) for name in family(page.template)))
    declared = {field.name for field in fields(page)}
    assert used - inner <= declared
    assert declared <= used


@pytest.mark.parametrize("page", SAMPLES, ids=IDS)
def test_pages_are_sound(page: pages.Page) -> None:
    """Balanced elements, unique ids, one h1, a language and a title; every reference finds its target."""
    html = to_html(page)
    document = Document(html)
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in document.every("label"):
        assert "for" not in attributes or attributes["for"] in ids
    for _, attributes in document.elements:
        assert set(attributes.get("aria-describedby", "").split()) <= set(ids)
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    if isinstance(page, pages.TurnFragment):
        return
    assert html.startswith("<!doctype html>\n")
    assert document.every("html") == [{"lang": "en"}]
    assert len(document.every("h1")) == 1
    assert len(document.every("main")) == 1
    assert re.search(r"<title>[^<]+</title>", html)


@pytest.mark.parametrize("page", SAMPLES, ids=IDS)
def test_every_control_has_a_label(page: pages.Page) -> None:
    """Fields have labels, images have texts, frames of pictures have names."""
    document = Document(to_html(page))
    labelled = {attributes.get("for") for attributes in document.every("label")}
    for tag in ("input", "textarea"):
        for attributes in document.every(tag):
            hidden = attributes.get("type") == "hidden" or "hidden" in attributes
            assert hidden or "aria-label" in attributes or attributes.get("id") in labelled, attributes
    assert all("alt" in attributes for attributes in document.every("img"))


@pytest.mark.parametrize("page", SAMPLES, ids=IDS)
def test_pages_keep_the_content_security_policy(page: pages.Page) -> None:
    """Nothing inline, nothing from elsewhere, forms to this service only."""
    html = to_html(page)
    document = Document(html)
    assert document.every("style") == []
    for tag, attributes in document.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
        for name in ("src", "action", "formaction"):
            assert re.match(r"/(?!/)", attributes.get(name, "/x")), attributes
    for attributes in document.every("script"):
        assert attributes["src"].startswith("/static/")
    for attributes in document.every("link"):
        assert attributes["href"].startswith("/static/")
    assert re.findall(r"<script[^>]*>[^<]", html) == []


def test_texts_are_escaped() -> None:
    """What people and models write is text, never markup."""
    html = to_html(SAMPLES[9])
    assert "Bread &amp; &lt;b&gt;" in html
    assert "a &lt; b\nc" in html
    assert "Try &lt;again&gt;." in html


def test_a_running_answer_reloads_without_javascript() -> None:
    """Only a page with a running answer refreshes itself, and only where there is no script."""
    refresh = '<noscript><meta http-equiv="refresh" content="2; url=/chats/3?look=1#m8"></noscript>'
    assert refresh in to_html(SAMPLES[10])
    assert "refresh" not in to_html(SAMPLES[9])


def test_static_files_name_nothing_elsewhere() -> None:
    """No address of another host, except the names of XML's vocabularies."""
    for path in [*assets.FOLDER.iterdir(), *TEMPLATES.iterdir()]:
        if path.suffix == ".png":
            continue
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"(?:https?:)?//[\w-]+\.\w+|@import|url\(", text) == [], path.name


def test_the_page_stays_small() -> None:
    """Few hundred lines of script, and all a browser fetches for a page under 100 kB."""
    assert len((assets.FOLDER / "app.js").read_text(encoding="utf-8").splitlines()) < 400
    weight = sum(path.stat().st_size for path in assets.FOLDER.iterdir())
    assert weight + max(len(to_html(page).encode()) for page in SAMPLES) < 100_000
