"""How people type: openings, courtesy, casing, missing punctuation, dropped words, slips of the finger."""

import random
import re
import tomllib
from pathlib import Path

HABITS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ALIKE: dict[str, list[str]] = {}
for _group in HABITS["alike"]["groups"]:
    for _word in _group:
        ALIKE[_word] = ALIKE.get(_word, []) + _group
CAREFUL: dict[str, str] = {name.lower(): name for name in HABITS["careful"]["names"]}
_ALIKE = re.compile(r"\b(" + "|".join(sorted(map(re.escape, ALIKE), key=len, reverse=True)) + r")\b")


def reword(text: str, rng: random.Random, share: float) -> str:
    """`text` with about `share` of the words that have a synonym replaced by one."""

    def other(found: re.Match[str]) -> str:
        return rng.choice(ALIKE[found[0]]) if rng.random() < share else found[0]

    return _ALIKE.sub(other, text)


def careful(text: str) -> str:
    """`text` with its names and first letter in capitals, but not inside addresses and commands."""
    named = re.sub(
        r"(?<![\w.`/-])[\w'-]+(?![\w.`/-]*[.`/]\w)", lambda found: CAREFUL.get(found[0], found[0]), text
    )
    return named[:1].upper() + named[1:]


def slip(text: str, rng: random.Random) -> str:
    """One typing error: two letters swapped, one lost, doubled, or hit beside the right key."""
    places = [at for at, letter in enumerate(text) if letter.isalpha()]
    if len(places) < 4:
        return text
    at = rng.choice(places[1:])
    kind = rng.randrange(4)
    if kind == 0:
        return text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[:at] + text[at] + text[at:]
    beside: str = HABITS["neighbours"].get(text[at].lower(), text[at])
    return text[:at] + rng.choice(beside) + text[at + 1 :]


def disturb(text: str, rng: random.Random, *, courtesy: bool = True, amount: float = 1.0) -> str:
    """`text` as somebody might really type it; often unchanged but for case and full stop.

    `amount` scales how often words are replaced or mistyped; `courtesy` allows additions around them.
    """
    ask = text.rstrip("?.! ")
    mark = text[len(ask) :].strip()
    if rng.random() < 0.5 * amount:
        ask = reword(ask, rng, 0.4)
    words = ask.split()
    if courtesy and len(words) > 3:
        if rng.random() < 0.12 * amount:
            words.insert(rng.randrange(1, len(words)), rng.choice(HABITS["alike"]["idle"]))
        if rng.random() < 0.05 * amount:
            at = rng.randrange(len(words) - 1)
            words[at : at + 2] = reversed(words[at : at + 2])
        ask = " ".join(words)
    if courtesy and rng.random() < 0.16:
        ask = str(rng.choice(HABITS["openings"])) + ask
    if courtesy and rng.random() < 0.08:
        ask += str(rng.choice(HABITS["endings"]))
    if rng.random() < 0.12:
        words = ask.split()
        kept = [word for word in words if word.lower() not in HABITS["small"] or rng.random() < 0.4]
        ask = " ".join(kept) if len(kept) >= 2 else ask
    if rng.random() < 0.1:
        for long, short in HABITS["shorter"].items():
            if rng.random() < 0.5:
                ask = re.sub(rf"\b{long}\b", short, ask)
    for chance in (0.22, 0.08):
        if rng.random() < chance * amount:
            ask = slip(ask, rng)
    case = rng.random()
    if case < 0.5:
        ask = careful(ask)
    elif case < 0.58:
        ask = ask[:1].upper() + ask[1:]
    elif case < 0.82:
        ask = ask.lower()
    elif case < 0.84:
        ask = ask.upper()
    ending = rng.random()
    if ending < 0.4:
        return ask
    if ending < 0.85:
        return ask + (mark or rng.choice(("?", ".", "")))
    return ask + rng.choice(("?", "??", "!", "...", " ?", "."))
