"""Chooses the next token from a model's logits. Pure numpy; shapes: logits [V] float32, V = vocabulary.

The steps, in order:

1. `logit_bias` is added.
2. Repetition penalty (Keskar et al. 2019, CTRL, section 4.1) over prompt and answer, as in Hugging Face
   transformers, whose `generation_config.json` is where models' recommended values come from; then
   frequency and presence penalties over the answer alone, as OpenAI's API defines them.
3. Temperature 0 takes the most likely token, the first of equals. Otherwise logits are divided by it.
4. top_k, then top_p (Holtzman et al. 2020) of what top_k left, then min_p (Nguyen et al. 2024), each a
   lower bound on probability: tokens exactly as likely as the last one kept are kept too.
5. One draw from what is left, from a PCG64 stream of the request's own: the same seed gives the same
   tokens whatever else the engine does.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.engine.messages import Sampling, Token, TokenScore
from appliance.errors import HobError, InvalidRequestError

Floats = NDArray[np.float32]

# Inclusive. Wider than the APIs allow, narrow enough that no product of logits overflows float32.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, 2**31),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "frequency_penalty": (-100, 100),
    "presence_penalty": (-100, 100),
    "top_logprobs": (0, 1000),
}
_BIAS_LIMIT = 1e6
_BLOCK = 256
_LIKELY = np.float32(1e-4)  # relative to the most likely token


def check(sampling: Sampling, vocab_size: int) -> None:
    """Raise `InvalidRequestError`, naming the field, for a value outside `RANGES` or an unknown token."""
    for name, (low, high) in RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:
            raise InvalidRequestError(f"{name} is {value}; it lies between {low} and {high}", param=name)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"logit_bias names token {token}; the model has tokens 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        if not abs(bias) <= _BIAS_LIMIT:
            raise InvalidRequestError(f"logit_bias of token {token} is {bias}", param="logit_bias")


class Sampler:
    """The choices of one request, in order; keeps what its penalties and its random stream need."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], vocab_size: int) -> None:
        """Start a request.

        Raises:
            InvalidRequestError: a value is out of range or a token does not exist.
        """
        check(sampling, vocab_size)
        self._sampling = sampling
        self._vocab_size = vocab_size
        seed = None if sampling.seed is None else sampling.seed % 2**64  # negative seeds are seeds too
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float32)
        self._seen: NDArray[np.bool_] | None = None
        if sampling.repetition_penalty != 1:
            self._seen = np.zeros(vocab_size, np.bool_)
            self._seen[list(prompt_ids)] = True
        self._counts: Floats | None = None
        if sampling.frequency_penalty or sampling.presence_penalty:
            self._counts = np.zeros(vocab_size, np.float32)

    def sample(self, logits: Floats) -> Token:
        """The next token; `logits` [V] stays unchanged.

        Raises:
            HobError: a logit is infinite or not a number.
        """
        assert logits.shape == (self._vocab_size,)
        # Both carry a NaN on, and together they see either infinity.
        if not (math.isfinite(logits.max()) and math.isfinite(logits.min())):
            raise HobError(
                "the model's output is not finite",
                code="model_output_invalid",
                hint="Verify the model's files; if they are sound, compile it with --kernels exact.",
            )
        shaped = self._shape(logits)
        if self._sampling.temperature == 0:
            token = int(shaped.argmax())
        else:
            token = draw(shaped, self._sampling, float(self._random.random()))
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1
        if self._sampling.top_logprobs is None:
            return Token(token=token)
        return scored(logits, token, self._sampling.top_logprobs)

    def _shape(self, logits: Floats) -> Floats:
        """Bias and penalties applied, in a copy if there are any."""
        wanted = self._sampling
        if not self._bias.size and self._seen is None and self._counts is None:
            return logits
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        if self._seen is not None:
            ids = np.flatnonzero(self._seen)
            values, penalty = logits[ids], np.float32(wanted.repetition_penalty)
            logits[ids] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts is not None:
            ids = np.flatnonzero(self._counts)
            logits[ids] -= np.float32(wanted.frequency_penalty) * self._counts[ids]
            logits[ids] -= np.float32(wanted.presence_penalty)
        return logits


def draw(logits: Floats, sampling: Sampling, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the cumulative filtered distribution, in order of token id."""
    ids, weights = candidates(logits, sampling)
    index = reach(weights, uniform)
    return index if ids is None else int(ids[index])


def candidates(logits: Floats, sampling: Sampling) -> tuple[NDArray[np.intp] | None, Floats]:
    """What temperature, top_k, top_p and min_p leave.

    Returns:
        ids [n] ascending, or None for all V, and weights [n]: probabilities relative to the most likely
        token's, which is 1; 0 where a filter takes the token out.
    """
    ids: NDArray[np.intp] | None = None
    if 0 < sampling.top_k < logits.size:
        ids = np.flatnonzero(logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k])
        logits = logits[ids]
    with np.errstate(over="ignore", under="ignore"):  # tiny temperatures: -inf, and so weight 0, is right
        weights = logits - logits.max()
        weights /= np.float32(sampling.temperature)
        np.exp(weights, out=weights)  # in place: fresh pages for 128k floats cost more than the arithmetic
    floor = np.float32(sampling.min_p)
    if sampling.top_p < 1:
        floor = max(floor, nucleus_floor(weights, sampling.top_p))
    if floor > 0:
        weights *= weights >= floor  # selecting them by a mask takes ten times as long
    return ids, weights


def nucleus_floor(weights: Floats, top_p: float) -> np.float32:
    """The least weight in the smallest set of largest `weights` whose share of the sum reaches `top_p`."""
    total = weights.sum(dtype=np.float64)
    share = 1 - top_p
    likely = weights >= _LIKELY
    # Mostly a few tokens have nearly all of the probability, and sorting those is enough.
    if np.count_nonzero(likely) < weights.size // 8:
        head = weights[likely]
        beyond = 1 - top_p * total / head.sum(dtype=np.float64)
        if beyond > 0:
            weights, share = head, float(beyond)
    ordered = np.sort(weights)
    # Seen from below: the first weight that the share outside the nucleus does not cover.
    return np.float32(ordered[reach(ordered, share)])


def reach(weights: Floats, share: float) -> int:
    """The first index at which the running sum of `weights` exceeds `share` (in [0, 1]) of their sum.

    Never an index of weight 0; the last other one if share is 1. Sums are float64 and in two levels, because
    a running sum over a whole vocabulary takes longer than everything else here together.
    """
    blocks = np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK), dtype=np.float64).cumsum()
    target = share * blocks[-1]
    # The first block that reaches the whole sum stands in for one beyond it.
    block = int(min(blocks.searchsorted(target, side="right"), blocks.searchsorted(blocks[-1])))
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    before = blocks[block - 1] if block else 0.0
    index = int(inside.cumsum(dtype=np.float64).searchsorted(target - before, side="right"))
    # The block's two sums differ by rounding, so the target may lie just beyond the second one.
    return block * _BLOCK + min(index, int(np.flatnonzero(inside)[-1]))


def scored(logits: Floats, token: int, top: int) -> Token:
    """`token` with its natural-log probability and the `top` most likely tokens, best first, ties by id."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    shifted -= math.log(np.exp(shifted).sum())
    best: list[TokenScore] = []
    if top:
        top = min(top, logits.size)
        ids = np.flatnonzero(logits >= np.partition(logits, -top)[-top])
        ids = ids[np.argsort(-logits[ids], kind="stable")][:top]
        best = [TokenScore(token=int(id), logprob=float(shifted[id])) for id in ids]
    return Token(token=token, logprob=float(shifted[token]), top=best)
