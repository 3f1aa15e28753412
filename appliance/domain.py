"""The words everything else speaks: messages, deltas, usage, model cards, hardware."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled", "error"]


class Frozen(BaseModel):
    """A value: equal by content, never changed after it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Frozen):
    """One turn of a conversation."""

    role: Role
    content: str


class Usage(Frozen):
    """Token counts of one generation."""

    prompt_tokens: int
    completion_tokens: int


class Timings(Frozen):
    """Seconds spent by one generation: waiting in the queue, in prefill, in decode."""

    queue: float
    prefill: float
    decode: float


class TokenLogprob(Frozen):
    """A candidate token with its natural-log probability before temperature and filters.

    `text` is the token's bytes decoded with replacement; `raw` are the bytes themselves.
    """

    text: str
    raw: bytes
    logprob: float


class Logprobs(Frozen):
    """The chosen token and, if asked for, the most likely ones at the same step, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


class Delta(Frozen):
    """A piece of an answer. Text pieces never split a character; the last delta carries `finish`."""

    text: str = ""
    logprobs: tuple[Logprobs, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class ModelCard(Frozen):
    """An installed model as people and programs see it.

    Attributes:
        name: unique name, also the directory's name.
        family: MLC model_type ("llama").
        quantization: MLC's name ("q4f16_1").
        parameters: number of weights, or None where the directory does not tell.
        bytes: size of the weights on disk.
        context: tokens of context window.
        created: Unix time of the directory.
        builtin: shipped with Hob.
        note: what a person should know before relying on it; empty when there is nothing.
        problem: why it cannot run; empty for a sound directory. The other fields are then best effort.
    """

    name: str
    family: str
    quantization: str
    parameters: int | None
    bytes: int
    context: int
    created: int
    builtin: bool = False
    note: str = ""
    problem: str = ""


class Gpu(Frozen):
    """A graphics processor; `memory` in bytes, or None where the driver does not tell."""

    name: str
    memory: int | None = None


class Hardware(Frozen):
    """What this machine is.

    Attributes:
        board: the vendor's name of the machine ("Raspberry Pi 5 Model B Rev 1.0"); empty when unknown.
        cpu: the processor's name.
        architecture: as `uname -m` says ("x86_64", "aarch64").
        features: the CPU's instruction set extensions that matter to the engine, sorted.
        cores: physical cores.
        threads: logical processors.
        memory, available: bytes of RAM, all of it and what is free for use now.
        gpus: graphics processors with a driver, best first.
    """

    board: str
    cpu: str
    architecture: str
    features: tuple[str, ...]
    cores: int
    threads: int
    memory: int
    available: int
    gpus: tuple[Gpu, ...] = ()
