"""Colours of code blocks, light and dark; `python -m webui.highlight` writes them to static/highlight.css.

Every colour keeps a contrast of at least 4.5 : 1 on its background (WCAG 2.2, success criterion 1.4.3).
"""

from pathlib import Path
from typing import ClassVar, Final

from pygments.formatters import HtmlFormatter
from pygments.style import Style
from pygments.token import (
    Comment,
    Error,
    Generic,
    Keyword,
    Literal,
    Name,
    Number,
    Operator,
    Punctuation,
    String,
    Token,
    _TokenType,
)

STYLESHEET: Final = Path(__file__).parent / "static" / "highlight.css"


class Daylight(Style):
    """Ink on warm paper."""

    name = "hob-daylight"
    background_color = "#f4eee5"
    styles: ClassVar[dict[_TokenType, str]] = {
        Token: "#2b2320",
        Comment: "italic #6e6258",
        Keyword: "#97321a",
        Keyword.Constant: "#7a3e93",
        Operator.Word: "#97321a",
        Name.Builtin: "#1d5f74",
        Name.Function: "#1d5f74",
        Name.Class: "#1d5f74",
        Name.Decorator: "#7a5200",
        Name.Tag: "#97321a",
        Name.Attribute: "#7a5200",
        String: "#3f6212",
        String.Escape: "#7a5200",
        Number: "#7a3e93",
        Literal: "#7a3e93",
        Punctuation: "#5b4f47",
        Generic.Deleted: "#97321a",
        Generic.Inserted: "#3f6212",
        Generic.Prompt: "#6e6258",
        Generic.Output: "#5b4f47",
        Error: "#97321a",
    }


class Emberlight(Style):
    """Embers on soot: the same hues for dark rooms."""

    name = "hob-emberlight"
    background_color = "#221d1a"
    styles: ClassVar[dict[_TokenType, str]] = {
        Token: "#ece4da",
        Comment: "italic #a2968a",
        Keyword: "#f2a07f",
        Keyword.Constant: "#d9aef0",
        Operator.Word: "#f2a07f",
        Name.Builtin: "#8cc8dc",
        Name.Function: "#8cc8dc",
        Name.Class: "#8cc8dc",
        Name.Decorator: "#e5be78",
        Name.Tag: "#f2a07f",
        Name.Attribute: "#e5be78",
        String: "#b3cf88",
        String.Escape: "#e5be78",
        Number: "#d9aef0",
        Literal: "#d9aef0",
        Punctuation: "#c2b5a8",
        Generic.Deleted: "#f2a07f",
        Generic.Inserted: "#b3cf88",
        Generic.Prompt: "#a2968a",
        Generic.Output: "#c2b5a8",
        Error: "#f2a07f",
    }


def _rules(style: type[Style], indent: str = "") -> str:
    """The style's colours for `.hl`, one line per colour; box and background belong to app.css."""
    classes: dict[str, list[str]] = {}
    formatter = HtmlFormatter(style=style)
    rules: str = formatter.get_style_defs(".hl")  # type: ignore[no-untyped-call]  # the stubs lack its types
    for line in rules.splitlines():
        rule, comment, _ = line.partition("/*")
        if not comment:
            continue  # a rule for a box, not for a token
        selector, _, declarations = rule.partition("{")
        classes.setdefault(declarations.strip(" }"), []).append(selector.strip())
    classes.pop("color: " + style.styles[Token].upper(), None)  # what the page's text has anyway
    return "".join(
        f"{indent}{', '.join(sorted(names))} {{ {what} }}\n" for what, names in sorted(classes.items())
    )


def stylesheet() -> str:
    """The whole of static/highlight.css."""
    return (
        "/* Made by `python -m webui.highlight`; change the styles there. */\n"
        f"{_rules(Daylight)}"
        f"@media (prefers-color-scheme: dark) {{\n{_rules(Emberlight, '  ')}}}\n"
    )


if __name__ == "__main__":
    STYLESHEET.write_text(stylesheet(), encoding="utf-8")
