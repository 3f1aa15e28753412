"""An engine process with a toy model: everything is real but the arithmetic.

`python -m tests.appliance.engine.toy` takes the flags of `appliance.engine.worker`. A model directory holds
`toy.json`, the arguments of `Toy`.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.engine import worker
from appliance.engine.messages import ModelRef
from appliance.errors import ModelLoadError


class Toy:
    """A bigram model with random logits.

    Token `broken` in a sequence makes it raise, `hollow` gives NaN, `wedged` computes for ever.
    """

    broken = 1
    hollow = 2
    wedged = 0

    def __init__(
        self, vocab_size: int = 64, context: int = 2**20, prefill_chunk: int = 8, seed: int = 0
    ) -> None:
        self.vocab_size = vocab_size
        self.context = context
        self.prefill_chunk = prefill_chunk
        self.sequences: dict[int, list[int]] = {}
        self.closed = False
        self._table = np.random.default_rng(seed).normal(0, 2, (vocab_size, vocab_size)).astype(np.float32)
        self._table[:, [self.broken, self.hollow, self.wedged]] = -100  # never chosen

    def add_sequence(self, seq: int) -> None:
        """Begin an empty sequence."""
        assert seq not in self.sequences
        self.sequences[seq] = []

    def remove_sequence(self, seq: int) -> None:
        """Free a sequence."""
        del self.sequences[seq]

    def prefill(self, seq: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append prompt tokens; logits [V] of the last."""
        assert not self.closed
        assert 0 < len(ids) <= self.prefill_chunk
        if self.broken in ids:
            raise RuntimeError("the toy is broken")
        if self.wedged in ids:
            print("the toy is wedged", file=sys.stderr, flush=True)
            threading.Event().wait()
        self.sequences[seq] += ids
        assert len(self.sequences[seq]) <= self.context
        return np.full(self.vocab_size, np.nan, np.float32) if self.hollow in ids else self._table[ids[-1]]

    def decode(self, seqs: Sequence[int], ids: Sequence[int]) -> NDArray[np.float32]:
        """Append a token to each sequence; logits [len(seqs), V]."""
        time.sleep(0.0001)  # about as fast as the smallest real model, and no faster than tests can read
        return np.stack([self.prefill(seq, [id]) for seq, id in zip(seqs, ids, strict=True)])

    def close(self) -> None:
        """Free everything."""
        self.closed = True


def load(model: ModelRef) -> Toy:
    """The toy in a directory, with the context that is asked for. On the device "cuda" it dies."""
    if model.target == "cuda":
        os._exit(139)  # what a shell shows after a segmentation fault
    try:
        return Toy(**json.loads((Path(model.directory) / "toy.json").read_text()), context=model.context)
    except FileNotFoundError as error:
        raise ModelLoadError(f"{error.filename} is missing", hint="Look for it.") from error


if __name__ == "__main__":
    worker.main(load=load)
