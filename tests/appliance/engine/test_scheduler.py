"""The scheduler: order, limits, and that nothing is lost whatever is cancelled when."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.messages import Generate, Load, ModelRef, Sampling
from appliance.engine.scheduler import Admit, Decode, End, Job, Prefill, Scheduler, Step, Switch

MODELS = [ModelRef(directory=name, library="", context=16) for name in ("one", "two")]


def job(
    id: str = "a", *, client: int = 0, prompt: int = 3, max_tokens: int = 2, model: ModelRef = MODELS[0]
) -> Job:
    """A generation whose stop token is 0."""
    return Job(
        client,
        Generate(
            id=id,
            model=model,
            prompt_ids=[1] * prompt,
            max_tokens=max_tokens,
            stop_token_ids=[0],
            sampling=Sampling(),
        ),
    )


@dataclasses.dataclass
class Engine:
    """Does what the scheduler says, with a model that gives the tokens in `tokens`, then 1 for ever."""

    scheduler: Scheduler = dataclasses.field(default_factory=Scheduler)
    loaded: ModelRef | None = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    cached: int = 0
    sent: Counter[str] = dataclasses.field(default_factory=Counter)
    ended: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)

    def step(self, *, chunk: int = 2, context: int = 16) -> Step | None:
        """Do one step and give it."""
        step = self.scheduler.next(self.loaded, chunk=chunk, context=context)
        match step:
            case Switch(job):
                assert self.cached == 0
                self.loaded = job.request.model
            case Admit(job):
                assert self.cached == 0
                self.scheduler.admitted(job)
            case Prefill(job, count):
                assert 0 < count <= chunk
                self.cached += count
                if self.scheduler.prefilled(job, count):
                    self.sample(job)
            case Decode(job):
                self.cached += 1
                self.sample(job)
            case End(job):
                self.cached = 0
                self.scheduler.end(job)
                self.ended.append((job.request.id, job.finish))
        assert self.cached < context
        return step

    def sample(self, job: Job) -> None:
        """One token from the list."""
        if self.scheduler.sampled(job, self.tokens.pop(0) if self.tokens else 1):
            self.sent[job.request.id] += 1

    def steps(self) -> list[str]:
        """Names of all steps until there is nothing to do."""
        names = []
        while step := self.step():
            names.append(type(step).__name__)
        return names


def test_one_request_from_load_to_end() -> None:
    """The model is loaded, the prompt goes in by chunks, and the last token is never put into the cache."""
    engine = Engine()
    engine.scheduler.add(job(prompt=5, max_tokens=3))
    assert engine.steps() == [
        "Switch", "Admit", "Prefill", "Prefill", "Prefill", "Decode", "Decode", "End"
    ]  # fmt: skip
    assert engine.ended == [("a", "length")]
    assert engine.sent["a"] == 3


def test_a_model_is_loaded_once() -> None:
    """Requests for the loaded model do not load it again; a `Load` of it ends at once."""
    engine = Engine()
    engine.scheduler.add(Job(0, Load(id="l", model=MODELS[0])))
    engine.scheduler.add(job(prompt=1, max_tokens=1))
    engine.scheduler.add(Job(0, Load(id="m", model=MODELS[0])))
    assert engine.steps() == ["Switch", "End", "Admit", "Prefill", "End", "End"]


def test_a_model_is_freed_in_its_turn() -> None:
    """A request to free the model waits for those before it; those after it load theirs again."""
    engine = Engine()
    engine.scheduler.add(job("a", prompt=1, max_tokens=1))
    engine.scheduler.add(Job(0, Load(id="free", model=None)))
    engine.scheduler.add(Job(0, Load(id="again", model=None)))
    engine.scheduler.add(job("b", prompt=1, max_tokens=1))
    first = ["Switch", "Admit", "Prefill", "End"]
    assert engine.steps() == [*first, "Switch", "End", "End", *first]
    assert engine.loaded == MODELS[0]


def test_models_switch_in_the_order_of_requests() -> None:
    """A request is not overtaken by later ones for the model that happens to be loaded."""
    engine = Engine()
    for number, model in enumerate((MODELS[0], MODELS[1], MODELS[0])):
        engine.scheduler.add(job(str(number), model=model))
    assert engine.steps().count("Switch") == 3
    assert [id for id, _ in engine.ended] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "finish", "sent"),
    [
        ([5, 6, 0], 9, "stop", 2),
        ([0], 9, "stop", 0),
        ([5, 6], 2, "length", 2),
        ([], 0, "length", 0),
        ([], 99, "length", 13),  # 3 of prompt and 13 fill the context of 16
    ],
)
def test_why_a_generation_ends(tokens: list[int], max_tokens: int, finish: str, sent: int) -> None:
    """At a stop token, which is not sent; at max_tokens; at the end of the context window."""
    engine = Engine(tokens=tokens)
    engine.scheduler.add(job(max_tokens=max_tokens))
    engine.steps()
    assert engine.ended == [("a", finish)]
    assert engine.sent["a"] == sent


def test_cancelled_requests() -> None:
    """A waiting request is gone at once; a running one ends with the very next step."""
    engine = Engine()
    first, second = job("a", max_tokens=9), job("b")
    engine.scheduler.add(first)
    engine.scheduler.add(second)
    for _ in range(6):
        engine.step()
    assert engine.scheduler.cancel(second)
    assert not engine.scheduler.cancel(first)
    sent = engine.sent["a"]
    assert engine.steps() == ["End"]
    assert engine.ended == [("a", "cancelled")]
    assert engine.sent["a"] == sent > 0


requests = st.builds(
    job,
    st.just(""),
    client=st.integers(0, 2),
    prompt=st.integers(1, 9),
    max_tokens=st.integers(0, 12),
    model=st.sampled_from(MODELS),
)
actions = st.lists(
    st.one_of(
        requests,
        st.sampled_from(["step"] * 6 + ["forget"]),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.builds(lambda model: Job(1, Load(id="", model=model)), st.sampled_from([*MODELS, None])),
    ),
    max_size=80,
)


@given(actions, st.lists(st.integers(0, 4), max_size=40))
def test_every_request_ends_once_and_in_order(
    script: list[Job | str | tuple[str, int]], tokens: list[int]
) -> None:
    """Whatever arrives and is cancelled when: each ends exactly once, those that run in order of arrival."""
    engine = Engine(tokens=tokens)
    added: list[Job] = []
    gone: set[str] = set()
    for action in script:
        match action:
            case Job():
                arrived = dataclasses.replace(action)  # hypothesis may give the same object twice
                arrived.request = type(action.request)(
                    **{n: getattr(action.request, n) for n in action.request.__struct_fields__}
                    | {"id": str(len(added))}
                )
                added.append(arrived)
                engine.scheduler.add(arrived)
            case "step":
                engine.step()
            case "forget":
                gone |= {j.request.id for j in engine.scheduler.waiting if j.client == 1}
                engine.scheduler.forget(1)
            case (_, int(number)):
                client = added[number].client if number < len(added) else 0
                found = engine.scheduler.find(client, str(number))
                if found and engine.scheduler.cancel(found):
                    gone.add(found.request.id)
    engine.steps()
    ended = [id for id, _ in engine.ended]
    assert sorted([*ended, *gone]) == sorted(j.request.id for j in added)
    assert ended == sorted(ended, key=int)
    assert engine.scheduler == Scheduler()
    for j in added:
        if isinstance(j.request, Generate):
            assert engine.sent[j.request.id] <= j.request.max_tokens
