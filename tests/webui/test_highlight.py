"""The colours of code are current and readable."""

import re

import pytest
from pygments.style import Style

from webui.highlight import STYLESHEET, Daylight, Emberlight, stylesheet


def luminance(colour: str) -> float:
    """Relative luminance of "rrggbb" (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_stylesheet_is_current() -> None:
    """static/highlight.css is what `python -m webui.highlight` writes."""
    assert STYLESHEET.read_text(encoding="utf-8") == stylesheet()


@pytest.mark.parametrize("style", [Daylight, Emberlight])
def test_code_is_readable(style: type[Style]) -> None:
    """Every token has a contrast of at least 4.5 on the background of code."""
    background = style.background_color.removeprefix("#")
    for token, look in style:
        assert contrast(look["color"] or "000000", background) >= 4.5, token


@pytest.mark.parametrize(("style", "scheme"), [(Daylight, 0), (Emberlight, 1)])
def test_the_background_is_that_of_the_page(style: type[Style], scheme: int) -> None:
    """The style's background, which its contrast is measured on, is the one the page draws."""
    css = (STYLESHEET.parent / "app.css").read_text(encoding="utf-8")
    panels = re.findall(r"--panel: (#\w+);", css)
    assert panels[scheme] == style.background_color
