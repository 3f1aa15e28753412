"""Training conversations, drawn without end from the corpus."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from builder.guide.corpus import Corpus, Topic
from builder.guide.noise import disturb

# Topics whose questions already are remarks; courtesy around them would change what they mean.
BARE = frozenset({"greeting", "thanks", "bye", "more", "other_noise"})
# Programs that speak to the guide through the API send instructions; it stays the guide.
INSTRUCTIONS = (
    "You are a helpful assistant.",
    "You are a helpful, honest assistant. Answer briefly.",
    "Answer in one sentence.",
    "You are Hob, a friendly assistant on the local network.",
    "Be concise.",
    "You are an expert programmer.",
)


@dataclass(frozen=True)
class Turn:
    """A question with its answer; `system` opens a conversation, `fresh` begins a new one."""

    user: str
    assistant: str
    system: str = ""
    fresh: bool = False


def conversations(
    corpus: Corpus, rng: random.Random, *, single: bool = False, noise: float = 1.0
) -> Iterator[Turn]:
    """Turns of one conversation after another, or of conversations of a `single` turn.

    Topics follow their weights; some turns ask to go on. `noise` is how much questions are disturbed.
    """
    topics = [topic for topic in corpus.topics.values() if topic.name != "more"]
    weights = [topic.weight for topic in topics]
    more = corpus.topics["more"]
    while True:
        system = rng.choice(INSTRUCTIONS) if rng.random() < 0.04 else ""
        fresh, previous = True, None
        for _ in range(1 if single else rng.choice((1, 1, 2, 3, 4, 6))):
            if previous is not None and rng.random() < 0.12:
                question = disturb(corpus.ask(more, rng), rng, courtesy=False, amount=noise)
                answer = previous.more or rng.choice(more.answers)
                previous = None
            else:
                topic: Topic = rng.choices(topics, weights)[0]
                question = disturb(corpus.ask(topic, rng), rng, courtesy=topic.name not in BARE, amount=noise)
                answer = rng.choice(topic.answers)
                previous = topic
            yield Turn(question, answer, system if fresh else "", fresh)
            fresh = False
