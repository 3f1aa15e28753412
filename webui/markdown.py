"""Markdown to safe HTML, whole or while it is still being written.

CommonMark plus GFM's tables and strikethrough. HTML in the source is shown as text; what the renderer makes
is cleaned again by nh3, so that a mistake here cannot become a script there. Nothing in the result makes a
browser fetch anything: images become links.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any, Final

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

# Highlighting is linear but slow; beyond this many characters a block is shown plain.
HIGHLIGHT_LIMIT: Final = 50_000

# fmt: off
_TAGS: Final = {
    "p", "a", "em", "strong", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "br",
    "h3", "h4", "h5", "h6",
    "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "span", "div",
}
# fmt: on
_ATTRIBUTES: Final = {
    "a": {"href", "title"},
    "ol": {"start"},
    "th": {"class"},
    "td": {"class"},
    "pre": {"tabindex"},
    "code": {"class"},
    "figure": {"class"},
    "div": {"class", "tabindex"},
    "span": {"class"},
}
_cleaner: Final = nh3.Cleaner(
    tags=_TAGS,
    attributes=_ATTRIBUTES,
    url_schemes={"http", "https", "mailto"},
    link_rel="noopener noreferrer nofollow",
)


def _highlighted(code: str, language: str) -> str:
    """HTML of `code`, with Pygments' classes where the language is known."""
    if not language or len(code) > HIGHLIGHT_LIMIT:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        return escape(code)
    return highlight(code, lexer, HtmlFormatter(nowrap=True))


class _Renderer(RendererHTML):
    """The HTML this project wants where markdown-it's differs; a method per token type."""

    def fence(
        self, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        token = tokens[index]
        words = token.info.split()
        language = words[0] if words else ""
        caption = f"<figcaption>{escape(language)}</figcaption>" if language else ""
        code = _highlighted(token.content, language)
        # A block that scrolls sideways has to be reachable by keyboard, hence the tabindex.
        return (
            f'<figure class="code">{caption}<pre tabindex="0"><code class="hl">{code}</code></pre></figure>\n'
        )

    def code_block(
        self, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        return self.fence(tokens, index, options, env)

    def image(
        self, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        token = tokens[index]
        source = str(token.attrs.get("src", ""))
        alt = self.renderInlineAsText(token.children, options, env) if token.children else ""
        return f'<a href="{escape(source)}">{escape(alt or source)}</a>'

    def table_open(
        self, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        return '<div class="table" tabindex="0"><table>\n'

    def table_close(
        self, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        return "</table></div>\n"


_parser: Final = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable(
    ["table", "strikethrough"]
)


def _blocks(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Group a token stream into its top-level blocks."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting != 1:
            yield block
            block = []


def _adapt(block: Sequence[Token]) -> None:
    """Change what the page's frame needs changed, in place.

    Headings move two levels down, below the page's own; column alignment becomes a class, because the page
    forbids style attributes.
    """
    for token in block:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
        elif token.type in ("th_open", "td_open") and (style := token.attrs.pop("style", None)):
            token.attrs["class"] = str(style).removeprefix("text-align:")


def _html(block: Sequence[Token], env: MutableMapping[str, Any]) -> str:
    _adapt(block)
    return _cleaner.clean(_parser.renderer.render(block, _parser.options, env))


def _lines(text: str) -> str:
    """`text` without carriage returns, so that a line has one way to end wherever the text is cut."""
    return text.replace("\r", "")


@lru_cache(maxsize=256)
def render(text: str) -> Markup:
    """The whole of `text` as HTML: one element per top-level block. Recent results are kept."""
    env: dict[str, Any] = {}
    blocks = _blocks(_parser.parse(_lines(text), env))
    return Markup("".join(_html(block, env) for block in blocks))  # noqa: S704  nh3 has cleaned it


@dataclass(frozen=True)
class Tail:
    """What to change on a page that shows an earlier state: keep the first `keep` elements, append `html`."""

    keep: int
    html: str


class LiveMarkdown:
    """Renders a growing text; each step costs as much as its last block, not as the whole.

    Blocks are read line by line, so once a later block has begun on a complete line, earlier ones are final.
    The one exception is a link reference defined after its use: it stays plain text until `render` sees all.
    """

    def __init__(self) -> None:
        self._references: dict[str, Any] = {}
        self._open = ""  # source of the block that may still change
        self._final = 0  # elements before it

    def push(self, text: str) -> Tail:
        """Append `text`; return the elements that were not final before, and how many precede them."""
        self._open += _lines(text)
        kept = self._final
        final = self._settle()
        blocks, env = self._parse(self._open)
        return Tail(kept, final + "".join(_html(block, env) for block in blocks))

    def _parse(self, source: str) -> tuple[list[list[Token]], dict[str, Any]]:
        """The blocks of `source`, and the link references known at its end."""
        env: dict[str, Any] = {"references": dict(self._references)}
        return list(_blocks(_parser.parse(source, env))), env

    def _settle(self) -> str:
        """Move the blocks that cannot change any more out of the open text; return their HTML."""
        # Half a line may yet turn out to be something else: only whole ones decide.
        whole = self._open[: self._open.rfind("\n") + 1]
        blocks, env = self._parse(whole)
        if len(blocks) < 2:
            return ""
        place = blocks[-1][0].map
        assert place is not None, "every top-level token knows its lines"
        self._open = self._open.split("\n", place[0])[-1]
        self._references = env["references"]
        self._final += len(blocks) - 1
        return "".join(_html(block, env) for block in blocks[:-1])
