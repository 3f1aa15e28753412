"""How good the guide is: held-out questions, answered greedily by the quantised weights, judged by facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from builder.guide.corpus import Corpus, Probe, Topic, load_corpus, load_heldout
from builder.guide.forward import Guide
from builder.guide.tokenizer import END

HERE = Path(__file__).parent
MODEL = HERE / "model"


@dataclass(frozen=True)
class Verdict:
    """A held-out question with the guide's answer."""

    probe: Probe
    answer: str
    right: bool


def judge(topic: Topic, answer: str) -> bool:
    """Whether `answer` has every fact of `topic`. An answer that declines is right only out of scope."""
    if topic.in_scope and topic.name not in {"limits", "more", "who"} and "I am only a small guide" in answer:
        return False
    return all(fact.search(answer) for fact in topic.facts)


def ask(guide: Guide, tokenizer: Tokenizer, turns: Sequence[str]) -> str:
    """The guide's answer to the last of `turns`, after answering the earlier ones."""
    prompt, answer = "", ""
    for turn in turns:
        prompt += f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"
        ids = guide.generate(tokenizer.encode(prompt, add_special_tokens=False).ids, END)
        answer = tokenizer.decode(ids)
        prompt += f"{answer}<|im_end|>\n"
    return answer


def evaluate(directory: Path = MODEL, corpus: Corpus | None = None) -> list[Verdict]:
    """Ask every held-out question. Deterministic."""
    topics = (corpus or load_corpus()).topics
    guide, tokenizer = Guide.of_directory(directory), Tokenizer.from_file(str(directory / "tokenizer.json"))
    verdicts = []
    for probe in load_heldout():
        answer = ask(guide, tokenizer, probe.turns)
        verdicts.append(Verdict(probe, answer, judge(topics[probe.topic], answer)))
    return verdicts


def share(verdicts: Sequence[Verdict]) -> float:
    """Fraction answered right, 0 to 1."""
    return sum(verdict.right for verdict in verdicts) / len(verdicts)


def report(verdicts: Sequence[Verdict]) -> str:
    """Every wrong answer, the share of each imperfect topic, and the share of all, for people to read."""
    wrong = [v for v in verdicts if not v.right]
    lines = [f"{v.probe.topic}: {' >> '.join(v.probe.turns)}\n    {v.answer!r}" for v in wrong]
    for topic in dict.fromkeys(v.probe.topic for v in wrong):
        of_topic = [v for v in verdicts if v.probe.topic == topic]
        lines.append(f"{topic}: {sum(v.right for v in of_topic)} of {len(of_topic)}")
    lines.append(f"{share(verdicts):.1%} of {len(verdicts)} held-out questions answered right")
    return "\n".join(lines)
