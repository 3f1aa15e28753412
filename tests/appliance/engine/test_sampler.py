"""Sampling: filters, penalties and logprobs against plain references, and the same text for the same seed."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance.engine.messages import Sampling
from appliance.engine.sampler import Floats, Sampler, candidates, draw, nucleus_floor, reach, scored
from appliance.errors import HobError, InvalidRequestError

# From single tokens to several blocks of the search; spread out so that the likely ones are few or many.
logits_of = arrays.arrays(
    np.float32,
    st.integers(1, 700),
    elements=st.floats(-30, 30, width=32, allow_nan=False),
    fill=st.nothing(),
)
shares = st.floats(0, 1, allow_nan=False)


def sampler(vocab: int, prompt: list[int] | None = None, **wanted: Any) -> Sampler:
    """A sampler of one request."""
    return Sampler(Sampling(**wanted), prompt or [0], vocab)


def softmax(logits: Floats, temperature: float = 1.0) -> Any:
    """Probabilities in float64, the plain way."""
    wide = logits.astype(np.float64) / temperature
    wide = np.exp(wide - wide.max())
    return wide / wide.sum()


def normal(vocab: int, seed: int = 0, scale: float = 2.0) -> Floats:
    """Random logits."""
    return np.random.default_rng(seed).normal(0, scale, vocab).astype(np.float32)


def kept(logits: Floats, **wanted: Any) -> set[int]:
    """The tokens that the filters leave."""
    ids, weights = candidates(logits, Sampling(**wanted))
    assert weights.max() == 1
    everything = np.arange(logits.size) if ids is None else ids
    return set(everything[weights > 0].tolist())


@given(logits_of, st.integers(1, 800))
def test_top_k_keeps_the_k_most_likely(logits: Floats, k: int) -> None:
    """At least k tokens stay; every one that goes is less likely than every one that stays."""
    ids = kept(logits, top_k=k)
    assert len(ids) >= min(k, logits.size)
    least = min(logits[i] for i in ids)
    assert sum(logits > least) < k
    assert ids == set(np.flatnonzero(logits >= least).tolist())


@given(logits_of, shares, st.floats(0.1, 3))
def test_top_p_keeps_the_smallest_set_that_reaches_p(
    logits: Floats, top_p: float, temperature: float
) -> None:
    """They have at least p of the probability; without the least likely of them, less than p."""
    ids = sorted(kept(logits, top_p=top_p, temperature=temperature))
    probabilities = softmax(logits, temperature)
    assert probabilities[ids].sum() >= top_p - 1e-5
    least = probabilities[ids].min()
    above = probabilities[probabilities > least * (1 + 1e-5)].sum()
    assert above <= top_p + 1e-5
    assert least >= np.delete(probabilities, ids).max(initial=0) * (1 - 1e-5)


@given(logits_of, shares)
def test_min_p_keeps_what_is_likely_enough(logits: Floats, min_p: float) -> None:
    """Tokens below min_p times the highest probability go, the others stay."""
    ids = kept(logits, min_p=min_p)
    ratio = np.exp(logits.astype(np.float64) - logits.max())
    sure = 1e-5
    assert set(np.flatnonzero(ratio >= min_p * (1 + sure))) <= ids
    assert ids <= set(np.flatnonzero(ratio >= min_p * (1 - sure)))


@given(logits_of, st.integers(1, 50), shares)
def test_top_p_acts_on_what_top_k_leaves(logits: Floats, k: int, top_p: float) -> None:
    """Together they keep what top_p keeps of the distribution that top_k leaves."""
    first = sorted(kept(logits, top_k=k))
    of_first = kept(logits[first], top_p=top_p)
    assert kept(logits, top_k=k, top_p=top_p) == {first[i] for i in of_first}


@given(
    arrays.arrays(np.float32, st.integers(1, 2000), elements=st.sampled_from([0, 1e-30, 1e-3, 0.5, 1])),
    st.floats(0, 1, exclude_max=True, allow_nan=False),
)
def test_reach_is_the_plain_running_sum(weights: Floats, share: float) -> None:
    """The two-level search finds the index of a running sum, and never a weight of 0."""
    weights[0] = 1
    total = math.fsum(weights)
    index = reach(weights, share)
    assert weights[index] > 0
    assert math.fsum(weights[:index]) <= share * total * (1 + 1e-12)
    assert math.fsum(weights[: index + 1]) >= share * total * (1 - 1e-12)


def test_a_nucleus_of_everything() -> None:
    """A top_p just below 1 keeps even the least token of a flat distribution, for all the rounding."""
    weights = np.linspace(1, 0.5, 100_003, dtype=np.float32)
    assert nucleus_floor(weights, 1 - 2**-53) == 0.5


def test_a_nucleus_of_nothing() -> None:
    """A top_p of 0 keeps the most likely token, whatever block of the search it lies in."""
    weights = np.zeros(3000, np.float32)
    weights[[100, 2000]] = 0.25, 1
    assert nucleus_floor(weights, 0) == 1
    assert reach(weights, 1) == 2000


@given(logits_of, st.integers(0, 2**32), st.integers(0, 40), shares, shares, st.floats(0.01, 5))
def test_only_kept_tokens_are_drawn(
    logits: Floats, seed: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    """Whatever the filters, a draw is one of the tokens they leave."""
    filters: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temperature}
    chosen = sampler(logits.size, seed=seed, **filters)
    ids = kept(logits, **filters)
    assert {chosen.sample(logits).token for _ in range(5)} <= ids


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 12},
        {"top_p": 0.8},
        {"temperature": 1.5, "top_k": 30, "min_p": 0.05},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(wanted: dict[str, Any]) -> None:
    """Pearson's chi-square of 20 000 seeded draws against the filtered softmax is unremarkable."""
    vocab, draws = 50, 20_000
    logits = normal(vocab, scale=1.0)
    ids = sorted(kept(logits, **wanted))
    expected = softmax(logits[ids], wanted.get("temperature", 1.0)) * draws
    chosen = sampler(vocab, seed=7, **wanted)
    counts = Counter(chosen.sample(logits).token for _ in range(draws))
    assert set(counts) <= set(ids)
    statistic = sum((counts[id] - e) ** 2 / e for id, e in zip(ids, expected, strict=True))
    freedom = len(ids) - 1
    # Wilson and Hilferty: the cube root of chi-square over its degrees of freedom is close to normal.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert abs(z) < 4


@given(logits_of)
def test_temperature_zero_is_greedy(logits: Floats) -> None:
    """The most likely token, the first of equals, whatever the filters and the seed."""
    expected = logits.tolist().index(max(logits.tolist()))
    assert sampler(logits.size, temperature=0).sample(logits).token == expected
    assert sampler(logits.size, temperature=0, top_k=5, top_p=0.5, seed=1).sample(logits).token == expected


@given(logits_of, st.sampled_from([1e-3, 1e-6, 1e-30]))
def test_a_tiny_temperature_is_almost_greedy(logits: Floats, temperature: float) -> None:
    """No overflow: one of the tokens that are most likely to within the temperature."""
    token = sampler(logits.size, temperature=temperature, seed=3).sample(logits).token
    assert logits[token] >= logits.max() - 100 * temperature


def penalised(logits: list[float], prompt: list[int], answer: list[int], wanted: Sampling) -> list[float]:
    """Bias and penalties token by token, as the definitions read."""
    result = []
    for token, logit in enumerate(logits):
        logit += wanted.logit_bias.get(token, 0)
        if token in prompt or token in answer:
            logit = logit / wanted.repetition_penalty if logit > 0 else logit * wanted.repetition_penalty
        logit -= wanted.frequency_penalty * answer.count(token)
        logit -= wanted.presence_penalty * (token in answer)
        result.append(logit)
    return result


tokens = st.integers(0, 9)


@given(
    st.integers(0, 2**32),
    st.lists(tokens, min_size=1, max_size=6),
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.dictionaries(tokens, st.floats(-100, 100), max_size=4),
)
def test_bias_and_penalties_are_those_of_a_plain_reference(
    seed: int, prompt: list[int], repetition: float, frequency: float, presence: float, bias: dict[int, float]
) -> None:
    """Greedy choices over eight steps equal those of the definitions, applied token by token."""
    wanted = Sampling(
        temperature=0,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=bias,
    )
    chosen = Sampler(wanted, prompt, 10)
    answer: list[int] = []
    for step in range(8):
        logits = normal(10, seed=seed + step)
        before = logits.copy()
        token = chosen.sample(logits).token
        reference = penalised(logits.tolist(), prompt, answer, wanted)
        assert reference[token] >= max(reference) - 1e-4
        assert (logits == before).all()
        answer.append(token)


def test_repetition_counts_the_prompt_but_frequency_and_presence_do_not() -> None:
    """A token of the prompt is made less likely by the repetition penalty alone."""
    logits = np.array([2.0, 1.9, -5.0], np.float32)
    assert sampler(3, [0], temperature=0, frequency_penalty=2, presence_penalty=2).sample(logits).token == 0
    assert sampler(3, [0], temperature=0, repetition_penalty=1.5).sample(logits).token == 1


def test_the_same_seed_gives_the_same_tokens() -> None:
    """Two requests of one seed agree, step for step, also when others draw in between; other seeds differ."""

    def tokens_of(chosen: Sampler, other: Sampler | None = None) -> list[int]:
        result = []
        for step in range(40):
            if other:
                other.sample(normal(1000, seed=99))
            result.append(chosen.sample(normal(1000, seed=step)).token)
        return result

    first = tokens_of(sampler(1000, seed=11))
    assert tokens_of(sampler(1000, seed=11), sampler(1000, seed=11)) == first
    assert tokens_of(sampler(1000, seed=12)) != first
    assert tokens_of(sampler(1000, seed=-11)) == tokens_of(sampler(1000, seed=-11)) != first
    assert tokens_of(sampler(1000)) != tokens_of(sampler(1000))


@given(logits_of, st.integers(0, 30))
def test_logprobs_are_of_the_raw_distribution(logits: Floats, top: int) -> None:
    """Temperature, filters, bias and penalties do not touch them; the best come first."""
    token = sampler(
        logits.size, temperature=0.1, top_k=1, logit_bias={0: 5.0}, repetition_penalty=2, top_logprobs=top
    ).sample(logits)
    reference = np.log(softmax(logits))
    assert token.logprob == pytest.approx(reference[token.token], abs=1e-6)
    assert len(token.top) == min(top, logits.size)
    expected = sorted(range(logits.size), key=lambda i: (-logits[i], i))[:top]
    assert [entry.token for entry in token.top] == expected
    assert [entry.logprob for entry in token.top] == pytest.approx([reference[i] for i in expected], abs=1e-6)


def test_no_logprobs_unless_asked_for() -> None:
    """None means none; 0 means the chosen token's alone."""
    logits = normal(20)
    silent = sampler(20, temperature=0).sample(logits)
    assert silent.logprob is None
    assert silent.top == []
    alone = sampler(20, temperature=0, top_logprobs=0).sample(logits)
    assert alone.logprob is not None
    assert alone.top == []
    assert scored(logits, alone.token, 3).top[0].token == alone.token


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_output_that_is_not_finite_is_an_error(value: float, temperature: float) -> None:
    """A model that computes NaN or infinity never yields a token."""
    logits = normal(300)
    logits[123] = value
    with pytest.raises(HobError, match="not finite") as caught:
        sampler(300, temperature=temperature).sample(logits)
    assert caught.value.code == "model_output_invalid"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 1.01),
        ("top_k", -1),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", math.inf),
        ("presence_penalty", -1e9),
        ("top_logprobs", -1),
        ("logit_bias", {20: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    """No such request reaches the model."""
    with pytest.raises(InvalidRequestError, match=field) as caught:
        sampler(20, **{field: value})
    assert caught.value.param == field


def test_a_draw_at_either_end() -> None:
    """The first and the last tokens of the distribution are reached, tokens of weight 0 never."""
    logits = np.array([-1e30, 0, -1e30, 0, -1e30], np.float32)
    assert draw(logits, Sampling(), 0.0) == 1
    assert draw(logits, Sampling(), 1 - 2**-53) == 3
