"""One token before anybody's: whether a model that has just been loaded computes at all.

A device can load a library and then return zeros, or numbers that are none, without any error.
"""

import numpy as np
from numpy.typing import NDArray

from appliance.engine.runner import Model
from appliance.errors import DeviceError

SEQUENCE = 0
TOKEN = 0  # every vocabulary has it


def check_one_token(model: Model) -> None:
    """Read one token and write one, and look at the scores. Leaves the model without sequences.

    Raises:
        DeviceError: the device raised an error, or scores are missing, not finite, or all the same.
    """
    try:
        model.add_sequence(SEQUENCE)
        best = _best(model.prefill(SEQUENCE, [TOKEN]), model.vocab_size)
        _best(model.decode([SEQUENCE], [best])[0], model.vocab_size)
        model.remove_sequence(SEQUENCE)
    except DeviceError:
        raise
    except Exception as error:
        raise DeviceError(f"the test token met {type(error).__name__}: {error}") from error


def _best(logits: NDArray[np.float32], vocabulary: int) -> int:
    """The most likely token, out of scores that can be right."""
    if logits.shape != (vocabulary,):
        raise DeviceError(f"the test token has scores of shape {logits.shape}, {vocabulary} were expected")
    if not np.isfinite(logits).all():
        raise DeviceError(
            "the test token's scores are not finite numbers", hint="The weights are damaged, or the device."
        )
    if vocabulary > 1 and logits.min() == logits.max():
        raise DeviceError("the test token's scores are all the same", hint="The device does not compute.")
    return int(logits.argmax())
