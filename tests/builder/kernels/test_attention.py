"""Attention over pages and over a chunk's own keys against numpy, called as TVM's KV cache does."""

import numpy as np
import pytest

from builder.compile.kernels import attention_state, paged_attention
from builder.compile.kernels.attention import NO_SCORE
from builder.compile.kernels.heads import Heads, Scoring
from builder.compile.kernels.isa import AVX2, AVX512_VNNI, GENERIC, Isa
from builder.errors import UnsupportedError
from tests.builder.kernels.harness import Array, InOut, Library, Out, compiled

# Groups of query heads that fill no tile; one query head per key head, of an odd number of vectors.
GROUPED, SINGLE = Heads(2, 14, 32), Heads(3, 3, 48)
CASES = [(AVX512_VNNI, GROUPED), (AVX2, SINGLE), (GENERIC, GROUPED), (GENERIC, SINGLE)]
WIDE = Heads(1, 4, 256)
SCORINGS = [
    (AVX512_VNNI, GROUPED, Scoring(window=21, cap=2.0)),
    (AVX2, WIDE, Scoring(window=16, cap=50.0)),
    (AVX2, SINGLE, Scoring(cap=0.5)),
    (GENERIC, GROUPED, Scoring(window=1)),
    (GENERIC, SINGLE, Scoring(window=40, cap=1.0)),
]
LENGTHS = [1, 15, 0, 16, 17, 100]
"""Keys per sequence."""

NO_ROTATION = (0, 1.0, 1.0)

SHARP = 2e-5
"""Tolerance where queries are scaled up until caps bite: float32's rounding of scores grows with them."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].name}-{case[1].name}")
def case(request: pytest.FixtureRequest) -> tuple[Isa, Heads]:
    chosen: tuple[Isa, Heads] = request.param
    return chosen


@pytest.fixture(scope="module")
def heads(case: tuple[Isa, Heads]) -> Heads:
    return case[1]


@pytest.fixture(scope="module")
def library(case: tuple[Isa, Heads]) -> Library:
    isa, heads = case
    return compiled(
        isa,
        {
            "decode": paged_attention.decode(heads, isa),
            "paged": paged_attention.paged_prefill(heads, isa),
            "ragged": paged_attention.ragged_prefill(heads, isa),
            "merge": attention_state.merge(heads),
        },
    )


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def reference(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    cap: float | None = None,
    window: int | None = None,
    positions: Array | None = None,
) -> tuple[Array, Array]:
    """Softmax attention of one sequence in float64, and its log-sum-exp in base 2.

    Queries may look back as far as `window`, from their `positions` counted from the first key.
    """
    output, lse = np.zeros(q.shape), np.full(q.shape[:2], NO_SCORE)
    if not len(k):
        return output, lse
    group = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        scores = q[:, head].astype(np.float64) @ k[:, head // group].T / np.sqrt(q.shape[2])
        scores = (scores if cap is None else cap * np.tanh(scores / cap)) * np.log2(np.e)
        seen = np.full(scores.shape, True)
        if causal:
            seen &= np.arange(len(k)) <= np.arange(len(q))[:, None] + len(k) - len(q)
        if window is not None:
            assert positions is not None
            seen &= np.arange(len(k)) > positions[:, None] - window
        some = seen.any(axis=1)
        scores = np.where(seen, scores, -np.inf)[some]
        peak = scores.max(axis=1, keepdims=True)
        weights = np.exp2(scores - peak)
        total = weights.sum(axis=1, keepdims=True)
        output[some, head] = weights / total @ v[:, head // group]
        lse[some, head] = (peak + np.log2(total))[:, 0]
    return output, lse


class Cache:
    """Keys and values of sequences on scattered pages; what no key fills is NaN, which must never be read."""

    def __init__(self, rng: np.random.Generator, heads: Heads, lengths: list[int]) -> None:
        self.keys = [normal(rng, length, heads.kv, heads.dim) for length in lengths]
        self.values = [normal(rng, length, heads.kv, heads.dim) for length in lengths]
        self.indptr = np.cumsum([0] + [-(-length // 16) for length in lengths]).astype(np.int32)
        count = int(self.indptr[-1])
        self.order = rng.permutation(count + 3)[:count].astype(np.int32)
        self.last = np.array([(length - 1) % 16 + 1 if length else 0 for length in lengths], dtype=np.int32)
        self.pages = np.full((count + 3, 2, heads.kv, 16, heads.dim), np.nan, dtype=np.float32)
        for sequence, length in enumerate(lengths):
            for position in range(length):
                page = self.order[self.indptr[sequence] + position // 16]
                self.pages[page, 0, :, position % 16] = self.keys[sequence][position]
                self.pages[page, 1, :, position % 16] = self.values[sequence][position]

    def arguments(self) -> tuple[Array, ...]:
        return self.pages, self.indptr, self.order, self.last


def starts(lengths: list[int]) -> Array:
    return np.cumsum([0, *lengths]).astype(np.int32)


def check(outputs: list[Array], expected: list[tuple[Array, Array]], atol: float = 5e-6) -> None:
    output, lse = outputs
    np.testing.assert_allclose(output, np.concatenate([part[0] for part in expected]), atol=atol)
    np.testing.assert_allclose(lse, np.concatenate([part[1] for part in expected]), atol=atol, rtol=1e-6)


def test_decode(library: Library, heads: Heads, rng: np.random.Generator) -> None:
    """One token per sequence sees all keys of its pages; a sequence without pages gives zeros."""
    cache, batch = Cache(rng, heads, LENGTHS), len(LENGTHS)
    q = normal(rng, batch, heads.query, heads.dim)
    zeros = np.zeros(batch, dtype=np.int32)
    out = Out(q.shape), Out(q.shape[:2])
    found = library("decode", q, *cache.arguments(), zeros, zeros, *out, *NO_ROTATION, heads.dim**-0.5)
    check(
        found,
        [reference(q[i : i + 1], cache.keys[i], cache.values[i], causal=False) for i in range(batch)],
    )


@pytest.mark.parametrize("causal", [False, True])
def test_prefill_onto_history(library: Library, heads: Heads, rng: np.random.Generator, causal: bool) -> None:
    """Chunks of several sequences see their histories; causal, with their own keys on the pages too."""
    chunks = [1, 3, 4, 7, 17, 40]
    lengths = (
        [max(length, chunk) for length, chunk in zip(LENGTHS, chunks, strict=True)] if causal else LENGTHS
    )
    cache, indptr = Cache(rng, heads, lengths), starts(chunks)
    q = normal(rng, sum(chunks), heads.query, heads.dim)
    offsets, positions = np.zeros(len(chunks), dtype=np.int32), np.zeros(len(q), dtype=np.int32)
    out = Out(q.shape), Out(q.shape[:2])
    found = library(
        "paged",
        q,
        indptr,
        *cache.arguments(),
        offsets,
        positions,
        *out,
        int(causal),
        *NO_ROTATION,
        heads.dim**-0.5,
    )
    check(
        found,
        [
            reference(q[indptr[i] : indptr[i + 1]], cache.keys[i], cache.values[i], causal=causal)
            for i in range(len(chunks))
        ],
    )


@pytest.mark.parametrize("causal", [False, True])
def test_prefill(library: Library, heads: Heads, rng: np.random.Generator, causal: bool) -> None:
    """Chunks of several sequences see their own keys, each token those up to itself if causal."""
    lengths = [1, 15, 16, 17, 100]
    indptr = starts(lengths)
    q = normal(rng, sum(lengths), heads.query, heads.dim)
    k, v = (normal(rng, sum(lengths), heads.kv, heads.dim) for _ in range(2))
    positions, offsets = np.zeros(len(q), dtype=np.int32), np.zeros(len(lengths), dtype=np.int32)
    out = Out(q.shape), Out(q.shape[:2])
    found = library(
        "ragged",
        q,
        indptr,
        k,
        v,
        indptr,
        positions,
        offsets,
        *out,
        int(causal),
        *NO_ROTATION,
        heads.dim**-0.5,
    )
    parts = [slice(indptr[i], indptr[i + 1]) for i in range(len(lengths))]
    check(found, [reference(q[part], k[part], v[part], causal=causal) for part in parts])


def test_merged_halves_equal_the_whole(library: Library, heads: Heads, rng: np.random.Generator) -> None:
    """Attention over two halves of the keys merges to that over all; a side without keys changes nothing."""
    q = normal(rng, 5, heads.query, heads.dim)
    k, v = (normal(rng, 40, heads.kv, heads.dim) for _ in range(2))
    sides = [reference(q, k[part], v[part], causal=False) for part in (slice(0, 13), slice(13, 40), slice(0))]
    one, other, none = ([part.astype(np.float32) for part in side] for side in sides)
    whole = reference(q, k, v, causal=False)
    check(library("merge", InOut(one[0]), InOut(one[1]), *other), [whole])
    check(library("merge", InOut(one[0]), InOut(one[1]), *none), [sides[0]])
    check(library("merge", InOut(none[0]), InOut(none[1]), *one), [sides[0]])


@pytest.fixture(scope="module", params=SCORINGS, ids=lambda case: f"{case[0].name}{case[2].name}")
def scored(request: pytest.FixtureRequest) -> tuple[Heads, Scoring, Library]:
    """Kernels of a model that bounds or caps its scores."""
    isa, heads, scoring = request.param
    kernels = {
        "decode": paged_attention.decode(heads, isa, scoring),
        "paged": paged_attention.paged_prefill(heads, isa, scoring),
        "ragged": paged_attention.ragged_prefill(heads, isa, scoring),
    }
    return heads, scoring, compiled(isa, kernels)


def layers(heads: Heads, scoring: Scoring) -> list[tuple[int | None, float]]:
    """The kinds of layers that such a model has: window, and the scale by which a layer tells it."""
    scale = heads.dim**-0.5
    return [(None, scale)] + ([] if scoring.window is None else [(scoring.window, -scale)])


def test_scored_decode(scored: tuple[Heads, Scoring, Library], rng: np.random.Generator) -> None:
    """Scores are capped, and layers that say so look no further back than the window.

    Pages may start within a chat, and may end before the query where other pages follow.
    """
    heads, scoring, library = scored
    cache, batch = Cache(rng, heads, LENGTHS), len(LENGTHS)
    q = 4 * normal(rng, batch, heads.query, heads.dim)
    start = np.array([0, 5, 0, 3, 100, 0], dtype=np.int32)
    after = np.array([0, 0, 0, 7, 30, 0], dtype=np.int32)
    ends = np.maximum(np.array(LENGTHS, dtype=np.int32) - 1, 0) + after
    out = Out(q.shape), Out(q.shape[:2])
    for window, scale in layers(heads, scoring):
        found = library("decode", q, *cache.arguments(), start, start + ends, *out, *NO_ROTATION, scale)
        expected = [
            reference(
                q[i : i + 1],
                cache.keys[i],
                cache.values[i],
                causal=False,
                cap=scoring.cap,
                window=window,
                positions=ends[i : i + 1],
            )
            for i in range(batch)
        ]
        check(found, expected, SHARP)


@pytest.mark.parametrize("causal", [False, True])
def test_scored_prefill_onto_history(
    scored: tuple[Heads, Scoring, Library], rng: np.random.Generator, causal: bool
) -> None:
    """Every query looks back from its own position: after the pages, or on them."""
    heads, scoring, library = scored
    chunks = [1, 3, 4, 7, 17, 40]
    lengths = [max(pair) for pair in zip(LENGTHS, chunks, strict=True)] if causal else LENGTHS
    cache, indptr = Cache(rng, heads, lengths), starts(chunks)
    q = 4 * normal(rng, sum(chunks), heads.query, heads.dim)
    start = np.array([0, 9, 0, 2, 64, 0], dtype=np.int32)
    places = [
        np.arange(chunk, dtype=np.int32) + (length - chunk if causal else length)
        for length, chunk in zip(lengths, chunks, strict=True)
    ]
    # Chats that continue from here attend to their common beginning together, each from its own position.
    places[4] = rng.permutation(places[4]) if not causal else places[4]
    positions = np.concatenate([place + at for place, at in zip(places, start, strict=True)])
    out = Out(q.shape), Out(q.shape[:2])
    for window, scale in layers(heads, scoring):
        last = (*out, int(causal), *NO_ROTATION, scale)
        found = library("paged", q, indptr, *cache.arguments(), start, positions, *last)
        expected = [
            reference(
                q[indptr[i] : indptr[i + 1]],
                cache.keys[i],
                cache.values[i],
                causal=causal,
                cap=scoring.cap,
                window=window,
                positions=places[i],
            )
            for i in range(len(chunks))
        ]
        check(found, expected, SHARP)


def test_scored_prefill(scored: tuple[Heads, Scoring, Library], rng: np.random.Generator) -> None:
    """A chunk longer than the window, at any position of the chat."""
    heads, scoring, library = scored
    lengths = [1, 15, 16, 17, 100]
    indptr = starts(lengths)
    q = 4 * normal(rng, sum(lengths), heads.query, heads.dim)
    k, v = (normal(rng, sum(lengths), heads.kv, heads.dim) for _ in range(2))
    offsets = np.array([0, 7, 0, 1000, 3], dtype=np.int32)
    positions = np.concatenate([np.arange(n) + at for n, at in zip(lengths, offsets, strict=True)])
    out = Out(q.shape), Out(q.shape[:2])
    positions = positions.astype(np.int32)
    parts = [slice(indptr[i], indptr[i + 1]) for i in range(len(lengths))]
    for window, scale in layers(heads, scoring):
        last = (*out, 1, *NO_ROTATION, scale)
        found = library("ragged", q, indptr, k, v, indptr, positions, offsets, *last)
        expected = [
            reference(
                q[part],
                k[part],
                v[part],
                causal=True,
                cap=scoring.cap,
                window=window,
                positions=np.arange(part.stop - part.start),
            )
            for part in parts
        ]
        check(found, expected, SHARP)


@pytest.mark.parametrize(
    ("kv", "query", "dim", "named"), [(2, 4, 40, "head_dim 40"), (3, 4, 64, "4 attention heads")]
)
def test_geometry_is_checked(kv: int, query: int, dim: int, named: str) -> None:
    """Head counts and dimensions that the kernels do not cover are refused by name."""
    with pytest.raises(UnsupportedError, match=named):
        Heads(kv, query, dim)
