"""Stop strings in a stream of text."""

from collections.abc import Sequence


class StopStrings:
    """Ends a stream of text at the first stop string to be completed, however the text is cut.

    Holds back only what may yet turn out to be the beginning of one. Linear in the text for any strings
    (Knuth, Morris, Pratt 1977).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that is safe to show, and whether a stop string is complete.

        After a hit the rest of the text is gone and nothing more may be pushed.
        """
        text = self._held + text
        for position in range(len(self._held), len(text)):
            longest = 0
            for i, stop in enumerate(self._stops):
                matched = self._matched[i]
                while matched and stop[matched] != text[position]:
                    matched = self._borders[i][matched - 1]
                matched += stop[matched] == text[position]
                self._matched[i] = matched
                if matched == len(stop):
                    longest = max(longest, matched)
            if longest:
                self._held = ""
                return text[: position + 1 - longest], True
        safe = len(text) - max(self._matched, default=0)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """End the stream: return what was held back."""
        held, self._held = self._held, ""
        return held


def _borders(stop: str) -> list[int]:
    """For each prefix, the length of the longest proper prefix that is also its suffix."""
    borders = [0]
    for character in stop[1:]:
        border = borders[-1]
        while border and stop[border] != character:
            border = borders[border - 1]
        borders.append(border + (stop[border] == character))
    return borders
