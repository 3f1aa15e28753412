"""When the set-up network opens and when it makes way: every situation, and that none goes round in
circles.
"""

from itertools import product

import pytest

from appliance.setup.decide import AGAIN, FRESH, PATIENT, Seen, Step, decide


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (Seen(online=True), Step.REST),
        (Seen(online=True, known=True), Step.REST),
        (Seen(since=FRESH - 1), Step.WAIT),
        (Seen(since=FRESH), Step.OPEN),
        (Seen(known=True, since=FRESH), Step.WAIT),
        (Seen(known=True, since=PATIENT), Step.OPEN),
        (Seen(open=True, since=9 * AGAIN), Step.WAIT),
        (Seen(open=True, online=True), Step.CLOSE),
        (Seen(open=True, online=True, guests=1), Step.CLOSE),
        (Seen(open=True, known=True, since=AGAIN - 1), Step.WAIT),
        (Seen(open=True, known=True, since=AGAIN), Step.CLOSE),
        (Seen(open=True, known=True, since=AGAIN, guests=1), Step.WAIT),
        (Seen(wished=True, open=True, guests=2), Step.JOIN),
        (Seen(wished=True, online=True), Step.JOIN),
    ],
)
def test_what_follows_from_what(seen: Seen, step: Step) -> None:
    """The table of the decisions, with the moments at which they change."""
    assert decide(seen) is step


def test_whoever_is_on_the_set_up_network_is_not_thrown_off_it() -> None:
    """Except by their own wish, or because a cable has made it needless."""
    for known, since in product((True, False), (0.0, AGAIN, 100 * AGAIN)):
        seen = Seen(open=True, guests=1, known=known, since=since)
        assert decide(seen) is Step.WAIT


def test_it_rests_only_when_there_is_a_network() -> None:
    """In no other situation does the process end: nobody would open the set-up network then."""
    for online, known, wished, is_open, since in product(
        (True, False), (True, False), (True, False), (True, False), (0.0, PATIENT, AGAIN)
    ):
        seen = Seen(online=online, known=known, wished=wished, open=is_open, since=since)
        if decide(seen) is Step.REST:
            assert online
            assert not is_open
            assert not wished
