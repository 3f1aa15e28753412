"""The pure parts of the client: pauses between restarts, errors from the wire."""

from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.client import Backoff, raised
from appliance.engine.messages import Failed
from appliance.errors import HobError


@given(st.lists(st.floats(0, 200), max_size=20))
def test_pauses_between_restarts(lives: list[float]) -> None:
    """They double up to the ceiling while the process keeps dying, and begin anew after a stable run."""
    backoff = Backoff(first=1, ceiling=8, stable=60)
    expected = 1.0
    for lived in lives:
        if lived >= 60:
            expected = 1.0
        assert backoff.after(lived) == expected
        expected = min(8.0, expected * 2)


def test_an_unknown_code_is_still_an_error() -> None:
    """A newer engine's error keeps its code and text."""
    error = raised(Failed(id="1", code="moon_phase", message="not today", hint="Wait."))
    assert (type(error), error.code, error.message, error.hint) == (
        HobError,
        "moon_phase",
        "not today",
        "Wait.",
    )
