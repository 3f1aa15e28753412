"""Training the guide: tokenizer, weights, checkpoint. Needs torch; two cores, under two hours."""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from builder.guide.corpus import load_corpus
from builder.guide.dialogue import conversations
from builder.guide.network import Parameters, Shape, forward, initial, loss_on, simulate_q4f16_1
from builder.guide.tokenizer import encode_turn, save_tokenizer, train_tokenizer

IGNORED = -100  # torch's mark for positions without loss
PROGRESS = "progress.json"


class Row(NamedTuple):
    """Tokens, what is to be predicted at each place, and the number of the part it belongs to."""

    ids: list[int]
    targets: list[int]
    parts: list[int]


@dataclass(frozen=True)
class Course:
    """One kind of training text, in rows of these lengths.

    With `apart`, a part is one question with its answer, and nothing else is attended to. A share `cut` of
    the answers ends after a few tokens: the first words decide which it is, the rest is always the same.
    """

    apart: bool
    cut: float
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """How long and how fast, with one rise and fall of the learning rate. A step sees `batch_tokens` tokens.

    Courses have shares of the steps; they follow each other or, if `mixed`, are drawn anew for each step. For
    the last `quantised_share` of the steps the weights are rounded as q4f16_1 rounds them, so that the model
    learns to live with it.
    """

    steps: int
    batch_tokens: int = 4096
    rate: float
    inner_rate: float = 2.0  # times `rate`: what the layers' matrices bear
    warmup: int = 50
    decay_share: float
    quantised_share: float
    courses: tuple[tuple[float, Course], ...]
    mixed: bool = False
    noise: float
    seed: int


SINGLE = Course(apart=True, cut=0.85, lengths=(256,))
JOINED = Course(apart=False, cut=0.85, lengths=(128, 128, 256, 256, 512, 1024))
WHOLE = Course(apart=False, cut=0.0, lengths=(128, 256, 256, 512, 512, 1024))

# Single questions come first, as they are learnt many times faster: all that is attended to matters. Later
# cycles mix, with questions nearer to how most people type.
PLAN = (
    Cycle(
        steps=1000,
        rate=2e-3,
        decay_share=0.65,
        quantised_share=0.2,
        courses=((0.6, SINGLE), (0.25, JOINED), (0.15, WHOLE)),
        noise=1.0,
        seed=20260101,
    ),
    *(
        Cycle(
            steps=steps,
            rate=rate,
            decay_share=0.85,
            quantised_share=0.4,
            courses=((0.45, SINGLE), (0.35, JOINED), (0.2, WHOLE)),
            mixed=True,
            noise=0.5,
            seed=seed,
        )
        for steps, rate, seed in ((800, 1.5e-3, 20260102), (800, 1.5e-3, 20260103), (600, 1.5e-3, 20260104))
    ),
)


def rows(
    tokenizer: Tokenizer, rng: random.Random, length: int, course: Course, noise: float
) -> Iterator[Row]:
    """Rows of `length` + 1 tokens, each running on from one conversation into the next.

    Where turns are not `apart`, the guide thereby learns to answer the question at hand no matter what came
    before it.
    """
    row = Row([], [], [])
    for number, turn in enumerate(conversations(load_corpus(), rng, single=course.apart, noise=noise)):
        prompt, answer = encode_turn(tokenizer, turn)
        if rng.random() < course.cut:
            answer = answer[: rng.randint(2, 10)]
        row.ids.extend(prompt + answer)
        row.targets.extend([IGNORED] * len(prompt) + answer)
        row.parts.extend([number if course.apart else 0] * len(prompt + answer))
        if len(row.ids) > length:
            yield Row(*(column[: length + 1] for column in row))
            row = Row([], [], [])


def batches(tokenizer: Tokenizer, cycle: Cycle) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, their parts, and targets shifted by one, [batch, length] each; one triple per step."""
    rng = random.Random(cycle.seed)  # noqa: S311 - draws text, guards nothing
    courses = [course for share, course in cycle.courses for _ in range(round(cycle.steps * share))]
    if cycle.mixed:
        rng.shuffle(courses)
    for course in courses:
        length = rng.choice(course.lengths)
        drawn = list(islice(rows(tokenizer, rng, length, course, cycle.noise), cycle.batch_tokens // length))
        ids, targets, parts = (torch.tensor(column) for column in zip(*drawn, strict=True))
        yield ids[:, :-1], parts[:, :-1], targets[:, 1:]


def rate_at(step: int, cycle: Cycle) -> float:
    """Learning rate: linear warm-up, plateau, cosine to a fiftieth."""
    if step < cycle.warmup:
        return cycle.rate * (step + 1) / cycle.warmup
    start = cycle.steps * (1 - cycle.decay_share)
    if step < start:
        return cycle.rate
    done = (step - start) / (cycle.steps - start)
    return cycle.rate * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class Trained:
    """A finished training: the Hugging Face checkpoint and how many tokens it saw."""

    checkpoint: Path
    tokens: int


def fit(
    parameters: Parameters, tokenizer: Tokenizer, shape: Shape, cycle: Cycle, save: Callable[[int, int], None]
) -> None:
    """Train `parameters` in place. Every 100 steps, and last, `save` gets steps done and tokens seen."""
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    # Muon gets by with about half the steps, but is made for the matrices inside the layers only.
    inner = [p for name, p in parameters.items() if ".layers." in name and p.ndim == 2]
    outer = [p for p in parameters.values() if not any(p is one for one in inner)]
    muon = torch.optim.Muon(inner, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(outer, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    started, seen = time.monotonic(), 0
    for step, (ids, parts, targets) in enumerate(batches(tokenizer, cycle), start=1):
        rate = rate_at(step - 1, cycle)
        muon.param_groups[0]["lr"] = rate * cycle.inner_rate
        adam.param_groups[0]["lr"] = rate
        weight = simulate_q4f16_1 if step > cycle.steps * (1 - cycle.quantised_share) else (lambda w: w)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = forward(parameters, shape, ids, parts, weight)
            loss = loss_on(hidden, weight(parameters["lm_head.weight"]), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimiser in (muon, adam):
            optimiser.step()
            optimiser.zero_grad()
        seen += ids.numel()
        if step % 20 == 0:
            spent = time.monotonic() - started
            print(f"step {step} loss {loss.item():.4f} {seen} tokens {spent:.0f} s", flush=True)
        if step % 100 == 0 or step == cycle.steps:
            save(step, seen)


def write_checkpoint(parameters: Parameters, tokenizer: Tokenizer, shape: Shape, directory: Path) -> None:
    """A Hugging Face checkpoint: config.json, model.safetensors (float32), tokenizer files."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.epsilon,
        "rope_theta": shape.theta,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.2, "top_p": 0.9}
    for name, content in (("config", config), ("generation_config", generation)):
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, directory)
    weights = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
    save_file(weights, directory / "model.safetensors")


def fresh_tokenizer(seed: int) -> Tokenizer:
    """A tokenizer trained on conversations like those that the model will see."""
    rng = random.Random(seed)  # noqa: S311 - draws text, guards nothing
    turns = list(islice(conversations(load_corpus(), rng), 40_000))
    return train_tokenizer([turn.user for turn in turns] + [turn.assistant for turn in turns[:8_000]])


def train(work: Path, plan: Sequence[Cycle], threads: int) -> Trained:
    """Train tokenizer and weights from nothing, in `work`, a folder per cycle. Finished cycles are kept.

    The same plan gives the same text and initial weights everywhere; sums in another order (another CPU,
    another number of threads) make the weights differ in detail.
    """
    shape = Shape()
    torch.set_num_threads(threads)
    known = work / "cycle-1" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(known)) if known.exists() else fresh_tokenizer(plan[0].seed + 1)
    parameters = initial(shape, plan[0].seed)
    tokens = 0
    for number, cycle in enumerate(plan, start=1):
        checkpoint = work / f"cycle-{number}"
        progress = checkpoint / PROGRESS
        if progress.exists() and json.loads(progress.read_text(encoding="utf-8"))["steps"] == cycle.steps:
            parameters = load_file(checkpoint / "model.safetensors")
        else:
            print(f"cycle {number} of {len(plan)}", flush=True)
            fit(parameters, tokenizer, shape, cycle, partial(_save, parameters, tokenizer, shape, checkpoint))
        tokens += json.loads(progress.read_text(encoding="utf-8"))["tokens"]
    return Trained(checkpoint, tokens)


def _save(
    parameters: Parameters, tokenizer: Tokenizer, shape: Shape, checkpoint: Path, steps: int, tokens: int
) -> None:
    write_checkpoint(parameters, tokenizer, shape, checkpoint)
    (checkpoint / PROGRESS).write_text(json.dumps({"steps": steps, "tokens": tokens}), encoding="utf-8")
