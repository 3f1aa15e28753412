"""What each weight format costs the guide: perplexity on held-out questions with their right answers.

The questions are those of the exam, which training cannot draw; the answers are the topics' own. Only the
tokens of an answer count, as in training. Beside perplexity there is the divergence of the predicted
distributions from the baseline's, which shows small losses that perplexity averages away.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from builder.compile.bfloat16 import round_bfloat16
from builder.compile.mlc import MLCDirectory
from builder.compile.quantise import QUANTISATIONS, Form, Quantisation, quantise, rounded
from builder.guide.corpus import load_corpus, load_heldout
from builder.guide.dialogue import Turn
from builder.guide.evaluate import MODEL
from builder.guide.forward import Array, Guide, parameters
from builder.guide.tokenizer import encode_turn

CHECKPOINTS = Path("out/guide")
"""Where training leaves its float32 weights, a folder per cycle."""

BATCH = 32
"""Texts at a time; their distributions over the vocabulary take 25 MB per format."""


class Text(NamedTuple):
    """Tokens, of which those from `start` on are to be predicted."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class Quality:
    """How well the guide predicts in some weight formats, which hold the same numbers.

    Attributes:
        bits: on disk per weight, with scales, norms and padding.
        perplexity: exp of the mean negative log-likelihood of a token.
        change: of the perplexity against the baseline's; 0.01 is one percent worse.
        divergence: mean Kullback-Leibler divergence from the baseline's distribution, nats per token.
        agreement: share of tokens at which the likeliest one is the baseline's.
    """

    formats: tuple[str, ...]
    bits: float
    perplexity: float
    change: float
    divergence: float
    agreement: float


@dataclass(frozen=True)
class Baseline:
    """The weights that formats are measured against, and what they are, for people to read."""

    guide: Guide
    what: str


def baseline(checkpoints: Path = CHECKPOINTS, directory: Path = MODEL) -> Baseline:
    """The float32 checkpoint of the guide's training, if its last cycle is in `checkpoints`.

    It is taken only if quantising it gives the very weights in `directory`. Otherwise those, read back as
    float32, are the baseline: the losses of other formats then come on top of the one that they have already.
    """
    mlc = MLCDirectory.open(directory)
    shipped = Guide.of_directory(directory)
    config = mlc.config["model_config"]
    for cycle in sorted(checkpoints.glob("cycle-*"), reverse=True):
        guide = Guide.of_checkpoint(config, cycle)
        again = in_format(guide, QUANTISATIONS[mlc.quantization])
        if all(np.array_equal(again.weights[name], values) for name, values in shipped.weights.items()):
            return Baseline(guide, f"float32 checkpoint {cycle}, from which the built-in guide was made")
    return Baseline(
        shipped,
        f"the built-in guide's {mlc.quantization} weights as float32, so {mlc.quantization} itself shows no"
        f" loss: no checkpoint in {checkpoints} is theirs (`just guide-train` makes checkpoints)",
    )


def heldout_texts(directory: Path = MODEL) -> list[Text]:
    """Every held-out question that needs no history, with the first answer of its topic."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    topics, texts = load_corpus().topics, []
    for probe in load_heldout():
        if not probe.history:
            turn = Turn(probe.question, topics[probe.topic].answers[0])
            prompt, answer = encode_turn(tokenizer, turn)
            texts.append(Text(prompt + answer, len(prompt)))
    return texts


def measure(reference: Guide, texts: Sequence[Text]) -> tuple[float, list[Quality]]:
    """The perplexity of `reference` on `texts`, and the quality of every weight format of it."""
    alike = list(same_numbers(QUANTISATIONS.values()))
    guides = [in_format(reference, formats[0]) for formats in alike]
    tokens, loss, sums = 0, 0.0, np.zeros((len(guides), 3))
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        right = np.concatenate([text.ids[text.start :] for text in batch])
        place = np.arange(len(right))
        expected = log_probabilities(reference, batch)
        tokens += len(right)
        loss -= float(expected[place, right].sum(dtype=np.float64))
        for guide, total in zip(guides, sums, strict=True):
            found = log_probabilities(guide, batch)
            divergence = (np.exp(expected) * (expected - found)).sum(dtype=np.float64)
            same = (found.argmax(-1) == expected.argmax(-1)).sum()
            total += (-found[place, right].sum(dtype=np.float64), divergence, same)
    perplexity = math.exp(loss / tokens)
    return perplexity, [
        Quality(
            formats=tuple(format.name for format in formats),
            bits=bits_on_disk(reference, formats[0]),
            perplexity=math.exp(losses),
            change=math.exp(losses) / perplexity - 1,
            divergence=divergence,
            agreement=same,
        )
        for formats, (losses, divergence, same) in zip(alike, (sums / tokens).tolist(), strict=True)
    ]


def same_numbers(formats: Iterable[Quantisation]) -> Iterator[list[Quantisation]]:
    """Formats that differ only in how the same numbers lie on disk, together."""
    found: dict[object, list[Quantisation]] = {}
    for format in formats:
        # Dense float32 is stored as bfloat16.
        dtype = "bfloat16" if format.bits is None and format.dtype == "float32" else format.dtype
        found.setdefault((format.bits, dtype, format.ends), []).append(format)
    yield from found.values()


def log_probabilities(guide: Guide, texts: Sequence[Text]) -> Array:
    """Of every token of the vocabulary, at each place of the texts that is to be predicted: [places, V]."""
    states = guide.states([text.ids[:-1] for text in texts], [guide.start() for _ in texts])
    asked = np.concatenate([np.arange(len(text.ids) - 1) >= text.start - 1 for text in texts])
    logits = guide.logits(states[asked])
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


def in_format(guide: Guide, quantisation: Quantisation) -> Guide:
    """The guide with its weights as they come back from a directory in that format."""
    return Guide(
        guide.config,
        {
            parameter.name: stored(guide.weights[parameter.name], quantisation.form(parameter.role))
            for parameter in parameters(guide.config)
        },
    )


def stored(values: Array, form: Form) -> Array:
    """Values as they come back from the disk, where float32 is kept as bfloat16."""
    narrow = round_bfloat16 if form.dtype == "float32" else np.asarray
    if form.bits is None:
        return narrow(rounded(values, form.dtype).astype(np.float32))
    words, scale = quantise(values, form.dtype, form.bits)
    tensors: tuple[npt.NDArray[np.generic], ...] = (words, narrow(scale))
    if form.layout == "KN":
        tensors = tuple(tensor.T for tensor in tensors)
    return form.values(tensors, values.shape)


def bits_on_disk(guide: Guide, quantisation: Quantisation) -> float:
    """Bits per weight of all tensors of the guide in that format."""
    width = {"uint32": 32}  # every float is stored in 16 bits
    bits = weights = 0
    for parameter in parameters(guide.config):
        weights += math.prod(parameter.shape)
        for tensor in quantisation.form(parameter.role).tensors(parameter.name, parameter.shape):
            bits += math.prod(tensor.shape) * width.get(tensor.dtype, 16)
    return bits / weights


def report(perplexity: float, found: Sequence[Quality], texts: Sequence[Text], what: str) -> str:
    """Everything measured, as a table for people; `what` the baseline is."""
    tokens = sum(len(text.ids) - text.start for text in texts)
    lines = [
        f"baseline: {what}",
        f"perplexity {perplexity:.4f} on {tokens:,} tokens of {len(texts)} answers",
        "",
        f"{'format':<18} {'bits':>6} {'perplexity':>11} {'change':>9} {'divergence':>11} {'same token':>11}",
    ]
    lines += [
        f"{' '.join(one.formats):<18} {one.bits:>6.2f} {one.perplexity:>11.4f} {one.change:>+9.2%}"
        f" {one.divergence:>11.2e} {one.agreement:>11.2%}"
        for one in found
    ]
    return "\n".join(lines)
