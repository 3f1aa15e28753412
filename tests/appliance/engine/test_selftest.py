"""The one token that every device has to compute before anybody asks it something."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.engine.selftest import check_one_token
from appliance.errors import DeviceError


class Device:
    """A model on a device that gives these scores, first for the token read and then for the one written."""

    vocab_size = 4
    context = 8
    prefill_chunk = 8

    def __init__(self, *scores: object) -> None:
        self.scores = list(scores)
        self.sequences: set[int] = set()
        self.read: list[int] = []

    def add_sequence(self, seq: int) -> None:
        """Begin."""
        self.sequences.add(seq)

    def remove_sequence(self, seq: int) -> None:
        """End."""
        self.sequences.remove(seq)

    def prefill(self, seq: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """The first scores."""
        self.read += ids
        return self._next()

    def decode(self, seqs: Sequence[int], ids: Sequence[int]) -> NDArray[np.float32]:
        """The second ones."""
        self.read += ids
        return self._next()[np.newaxis]

    def close(self) -> None:
        """Nothing to free."""

    def _next(self) -> NDArray[np.float32]:
        scores = self.scores.pop(0)
        if isinstance(scores, Exception):
            raise scores
        return np.array(scores, np.float32)


GOOD = [0.0, 3.0, 1.0, 2.0]


def test_a_device_that_computes() -> None:
    """Finite scores that differ pass; the likeliest token is read next, and nothing is left behind."""
    device = Device(GOOD, GOOD)
    check_one_token(device)
    assert device.read == [0, 1]
    assert device.sequences == set()


@pytest.mark.parametrize(
    ("scores", "word"),
    [
        ([0.0, np.nan, 1.0, 2.0], "not finite"),
        ([0.0, np.inf, 1.0, 2.0], "not finite"),
        ([0.0, 0.0, 0.0, 0.0], "all the same"),
        ([0.0, 1.0], "shape"),
        (RuntimeError("CUDA: misaligned address"), "misaligned address"),
    ],
    ids=["nan", "infinite", "zeros", "shape", "fault"],
)
@pytest.mark.parametrize("second", [False, True], ids=["read", "written"])
def test_a_device_that_does_not(scores: object, word: str, second: bool) -> None:
    """Numbers that cannot be right, and errors of the driver, are the device's failure in words."""
    device = Device(GOOD, scores) if second else Device(scores)
    with pytest.raises(DeviceError, match=word):
        check_one_token(device)
