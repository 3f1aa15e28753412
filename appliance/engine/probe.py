"""Looks into a model from outside: greedy tokens, best logits and timings of one prompt.

Holds two engines, kernels or libraries side by side. Runs the engine in this process, without sampling, chat
template or stop tokens.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from appliance.engine.native import Floats, NativeModel
from appliance.errors import ContextLengthError, InvalidRequestError

TOP = 5


@dataclass(frozen=True)
class Score:
    """A token and its logit."""

    token: int
    logit: float


@dataclass(frozen=True)
class Probe:
    """What a model did with a prompt.

    Attributes:
        greedy_ids: the most likely token of each step, fed back into the model. On a tie, the lowest id.
        top: for each step the best logits, best first.
        load, prefill, decode: seconds; decode is the sum over all steps after the first token.
        prefill_tokens_per_second, decode_tokens_per_second: the same as rates; 0 where nothing ran.
        rss: resident bytes of the process at the end.
    """

    greedy_ids: list[int]
    top: list[list[Score]]
    load: float
    prefill: float
    decode: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    rss: int

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def probe(directory: Path, library: Path, ids: Sequence[int], new: int, *, threads: int = 0) -> Probe:
    """Continue `ids` greedily by `new` tokens; end-of-text tokens do not stop it.

    Raises:
        InvalidRequestError: no ids, an id outside the vocabulary, or `new` below 1.
        ContextLengthError: prompt and new tokens exceed what the model was made for.
        ModelLoadError: the model cannot run here.
    """
    if new < 1:
        raise InvalidRequestError(f"{new} new tokens were asked for, at least 1 is needed", param="new")
    tokens = len(ids) + new
    start = time.perf_counter()
    model = NativeModel.load(directory, library, context=tokens, max_sequences=1, threads=threads)
    loaded = time.perf_counter()
    try:
        if tokens > model.context:
            raise ContextLengthError(
                f"{len(ids)} tokens and {new} new ones do not fit the context of {model.context} tokens"
            )
        model.add_sequence(0)
        began = time.perf_counter()
        steps = [_best(model.prefill(0, ids))]
        filled = time.perf_counter()
        while len(steps) < new:
            steps.append(_best(model.decode([0], [steps[-1][0].token])[0]))
        ended = time.perf_counter()
        return Probe(
            greedy_ids=[best[0].token for best in steps],
            top=steps,
            load=loaded - start,
            prefill=filled - began,
            decode=ended - filled,
            prefill_tokens_per_second=len(ids) / (filled - began),
            decode_tokens_per_second=(new - 1) / (ended - filled),
            rss=int(psutil.Process().memory_info().rss),
        )
    finally:
        model.close()


def _best(logits: Floats) -> list[Score]:
    """The best tokens, best first; equal logits in order of their ids."""
    count = min(TOP, logits.size)
    # Everything that ties with the last place takes part, so that ties do not depend on the partition.
    bound = np.partition(logits, -count)[-count]
    candidates = np.flatnonzero(logits >= bound)
    order = candidates[np.argsort(-logits[candidates], kind="stable")][:count]
    return [Score(int(token), float(logits[token])) for token in order]
