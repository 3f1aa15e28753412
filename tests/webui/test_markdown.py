"""Markdown becomes safe HTML, and the same HTML whether it comes at once or in pieces."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webui.markdown import HIGHLIGHT_LIMIT, LiveMarkdown, render

VOID = {"br", "hr"}

LINES = [
    "# Heading",
    "Heading",
    "---",
    "===",
    "- item",
    "-",
    "* star",
    "  more of it",
    "1. one",
    "2) two",
    "> quote",
    "```python",
    "```",
    "~~~",
    "    indented",
    "\tdef f(): pass",
    "| a | b |",
    "|---|--:|",
    "| 1 | 2 |",
    "plain *text* with `code`",
    "**bold** and ~~gone~~",
    "<div>html</div>",
    "[link](http://example.org)",
    "![image](http://example.org/x.png)",
    "***",
    "\\",
    "&amp; é 🔥",
    "",
    "",
]


class Outline(HTMLParser):
    """Collects top-level elements and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.top: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text_outside = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self.open:
            self.top.append("")
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            self.text_outside += data.strip()


def elements(html: str) -> list[str]:
    """The top-level elements of `html`, each as its own HTML."""
    html = str(html)  # Markup would escape what is added to it
    ends: list[str] = []

    class Cut(HTMLParser):
        depth = 0
        begin = 0

        def position(self) -> int:
            line, column = self.getpos()
            return sum(len(row) for row in html.splitlines(keepends=True)[: line - 1]) + column

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if self.depth == 0:
                self.begin = self.position()
            if tag not in VOID:
                self.depth += 1
            elif self.depth == 0:
                ends.append(html[self.begin : self.position()] + f"<{tag}>")

        def handle_endtag(self, tag: str) -> None:
            self.depth -= 1
            if self.depth == 0:
                ends.append(html[self.begin : self.position()] + f"</{tag}>")

    cut = Cut(convert_charrefs=True)
    cut.feed(html)
    cut.close()
    return ends


documents = st.lists(st.sampled_from(LINES), max_size=14).map("\n".join)


@settings(deadline=None)
@given(documents, st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_pieces_give_the_same_page_as_the_whole(text: str, sizes: list[int]) -> None:
    """A page that applies every tail shows what it would show had the text come at once, at every step."""
    live = LiveMarkdown()
    page: list[str] = []
    begin = step = 0
    while begin < len(text):
        end = begin + sizes[step % len(sizes)]
        tail = live.push(text[begin:end])
        assert tail.keep <= len(page)
        page[tail.keep :] = elements(tail.html)
        assert page == elements(render(text[:end]))
        begin, step = end, step + 1


@settings(deadline=None)
@given(documents, st.integers(0, 200))
def test_a_page_may_begin_anywhere(text: str, offset: int) -> None:
    """A page made of a text's beginning needs only the tail of the rest."""
    live = LiveMarkdown()
    live.push(text[:offset])
    page = elements(render(text[:offset]))
    tail = live.push(text[offset:])
    page[tail.keep :] = elements(tail.html)
    assert page == elements(render(text))


@settings(deadline=None)
@given(st.text(max_size=400))
def test_html_is_always_balanced(text: str) -> None:
    """Whatever the text, every element is closed and nothing stands outside the blocks."""
    assert Outline(render(text)).text_outside == ""


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '<img src=x onerror="alert(1)">',
        "[x](javascript:alert(1))",
        "[x](data:text/html,x)",
        '<a href="vbscript:x">x</a>',
        "![x](javascript:alert(1))",
        '```"><script>\n</script>\n```',
        '[x](http://a.example "onmouseover=alert(1)")',
        '<http://a.example/"onclick=x>',
        "| a |\n|:-:|\n| <b style=x> |",
    ],
)
def test_nothing_in_an_answer_can_act(text: str) -> None:
    """No script, no handler, no style, no address but of the web and of mail."""
    outline = Outline(render(text))
    for tag, name, value in outline.attributes:
        assert tag not in {"script", "img", "iframe", "style"}
        assert not name.startswith("on")
        assert name != "style"
        if name == "href":
            assert value
            assert value.startswith(("http:", "https:", "mailto:"))


def test_images_are_links() -> None:
    """A page never fetches what an answer names; the reader may."""
    html = render("![A cat](http://example.org/cat.png)")
    assert '<a href="http://example.org/cat.png" rel="noopener noreferrer nofollow">A cat</a>' in html
    assert "<img" not in html


def test_headings_stand_below_those_of_the_page() -> None:
    """The page has h1 and h2; an answer begins with h3 and ends with h6."""
    assert render("# a") == "<h3>a</h3>\n"
    assert render("###### a") == "<h6>a</h6>\n"


def test_known_languages_are_coloured() -> None:
    """Code of a known language has classes, the language is its caption, and it scrolls by keyboard."""
    html = render("```python\nreturn 1\n```")
    assert html == (
        '<figure class="code"><figcaption>python</figcaption><pre tabindex="0"><code class="hl">'
        '<span class="k">return</span> <span class="mi">1</span>\n</code></pre></figure>\n'
    )


@pytest.mark.parametrize("language", ["", "klingon"])
def test_other_code_is_plain(language: str) -> None:
    """Code of an unknown language is shown as it is."""
    assert "a &lt; b" in render(f"```{language}\na < b\n```")
    assert "<span" not in render(f"```{language}\na < b\n```")


def test_very_long_code_is_plain() -> None:
    """Highlighting has a limit, so that one answer cannot hold up the service."""
    assert "<span" not in render("```python\n" + "x = 1\n" * HIGHLIGHT_LIMIT + "```")


def test_table_columns_are_aligned_without_styles() -> None:
    """Alignment is a class: the page allows no style attribute."""
    html = render("| a | b |\n|---|--:|\n| 1 | 2 |")
    assert '<td class="right">2</td>' in html
    assert "style" not in html


def test_carriage_returns_change_nothing() -> None:
    """Windows' line ends give the same page."""
    assert render("a\r\n\r\n- b\r\n") == render("a\n\n- b\n")


def test_deep_nesting_ends() -> None:
    """Nesting without end neither raises nor hangs."""
    assert render("> " * 5000 + "deep")
    assert render("- " * 5000 + "deep")
    assert render("[" * 500)
