"""The guide's knowledge as data: topics, the ways people ask for them, and the answers.

A topic file is TOML. `[words]` names alternatives that patterns of any file may use as `<name>`. Every other
table is a topic with

    questions   patterns: literal text, `{a|b|}` for one of several (may nest), `<name>` for a named list
    answers     what the guide says, one of them at random
    facts       regular expressions, searched without regard to case; a right answer matches all of them
    more        optional: what it says when asked to go on after this topic
    weight      optional: how often the topic is drawn, 1.0 by default
"""

import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from builder.errors import FormatError

HERE = Path(__file__).parent

# A pattern, parsed: text, or alternatives each of which is a sequence again.
Node = str | tuple["Sequence", ...]
Sequence = tuple[Node, ...]


@dataclass(frozen=True)
class Topic:
    """One thing the guide can answer. `questions` are parsed patterns, `facts` compiled expressions."""

    name: str
    questions: tuple[Sequence, ...]
    answers: tuple[str, ...]
    facts: tuple[re.Pattern[str], ...]
    more: str
    weight: float

    @property
    def in_scope(self) -> bool:
        """Whether the guide knows an answer, rather than how to decline."""
        return not self.name.startswith("other_")


@dataclass(frozen=True)
class Corpus:
    """All topics by name."""

    topics: Mapping[str, Topic]

    def ask(self, topic: Topic, rng: random.Random) -> str:
        """One question for `topic`, drawn from its patterns."""
        return tidy(sample(rng.choice(topic.questions), rng))


def tidy(text: str) -> str:
    """Single spaces, none before punctuation: what empty alternatives leave behind is removed."""
    return re.sub(r"\s+([,.?!])", r"\1", re.sub(r"\s+", " ", text)).strip()


def normalise(text: str) -> str:
    """The form in which two questions count as the same: lower case, only letters, digits, spaces."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def parse(pattern: str, words: Mapping[str, list[str]]) -> Sequence:
    """Parse one pattern.

    Raises:
        FormatError: a brace is not closed, or a name is not in `words`.
    """
    branches, rest = _branches(pattern, words)
    if rest or len(branches) != 1:
        raise FormatError(f"guide pattern {pattern!r}: stray '}}' or '|'")
    return branches[0]


def _branches(text: str, words: Mapping[str, list[str]]) -> tuple[tuple[Sequence, ...], str]:
    """Alternatives up to the closing brace or the end, and what follows it."""
    done: list[Sequence] = []
    nodes: list[Node] = []
    while text:
        plain = re.match(r"[^{|}<]*", text)
        assert plain is not None
        if plain[0]:
            nodes.append(plain[0])
        text = text[plain.end() :]
        if text.startswith("{"):
            inner, text = _branches(text[1:], words)
            if not text.startswith("}"):
                raise FormatError(f"guide pattern: '{{' is not closed before {text!r}")
            nodes.append(inner)
            text = text[1:]
        elif text.startswith("<"):
            name, _, text = text[1:].partition(">")
            if name not in words:
                raise FormatError(f"guide pattern: no [words] entry {name!r}")
            nodes.append(tuple(parse(choice, words) for choice in words[name]))
        elif text.startswith("|"):
            done.append(tuple(nodes))
            nodes = []
            text = text[1:]
        elif text.startswith("}"):
            break
    done.append(tuple(nodes))
    return tuple(done), text


def sample(sequence: Sequence, rng: random.Random) -> str:
    """One text of the pattern, every alternative equally likely."""
    return "".join(node if isinstance(node, str) else sample(rng.choice(node), rng) for node in sequence)


def expression(sequence: Sequence) -> str:
    """A regular expression for the normalised form of every text `sample` can give; spaces are optional."""
    parts: list[str] = []
    for node in sequence:
        if isinstance(node, str):
            parts.extend(re.findall(r"[^\W_]+", node.lower()))
        else:
            parts.append("(?:" + "|".join(dict.fromkeys(expression(branch) for branch in node)) + ")")
    return r"\s*".join(parts)


@cache
def load_corpus(directory: Path = HERE / "topics") -> Corpus:
    """Read every topic file of `directory`.

    Raises:
        FormatError: a file or a pattern is malformed, or two files define one topic.
    """
    tables: dict[str, dict[str, object]] = {}
    words: dict[str, list[str]] = {}
    for path in sorted(directory.glob("*.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        words |= content.pop("words", {})
        if twice := tables.keys() & content.keys():
            raise FormatError(f"{path.name}: topic {min(twice)!r} is defined twice")
        tables |= content
    return Corpus({name: _topic(name, table, words) for name, table in tables.items()})


def _topic(name: str, table: Mapping[str, object], words: Mapping[str, list[str]]) -> Topic:
    def texts(key: str) -> list[str]:
        value = table.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise FormatError(f"topic {name!r}: {key} must be a list of strings")
        return value

    unknown = table.keys() - {"questions", "answers", "facts", "more", "weight"}
    if unknown:
        raise FormatError(f"topic {name!r}: unknown key {min(unknown)!r}")
    weight = table.get("weight", 1.0)
    if not isinstance(weight, float):
        raise FormatError(f"topic {name!r}: weight must be a float")
    return Topic(
        name=name,
        questions=tuple(parse(question, words) for question in texts("questions")),
        answers=tuple(texts("answers")),
        facts=tuple(re.compile(fact, re.IGNORECASE) for fact in texts("facts")),
        more=str(table.get("more", "")),
        weight=weight,
    )


@dataclass(frozen=True)
class Probe:
    """A held-out question: the topic that answers it, the question, and what was asked before it."""

    topic: str
    question: str
    history: tuple[str, ...] = ()

    @property
    def turns(self) -> tuple[str, ...]:
        """All that is asked, the question last."""
        return *self.history, self.question


def load_heldout(path: Path = HERE / "heldout.toml") -> list[Probe]:
    """Held-out questions, `topic = ["question", …]`.

    A question may be `"earlier question >> question"`: the earlier one is asked first, in one conversation.
    """
    return list(_probes(tomllib.loads(path.read_text(encoding="utf-8"))))


def _probes(table: Mapping[str, list[str]]) -> Iterator[Probe]:
    for topic, questions in table.items():
        for question in questions:
            *earlier, last = question.split(" >> ")
            yield Probe(topic, last, tuple(earlier))
