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

    @classmethod
    def of(cls, raw: bytes, logprob: float) -> "TokenLogprob":
        """From a token's bytes."""
        return cls(text=raw.decode(errors="replace"), raw=raw, logprob=logprob)


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
    """A model as people and programs see it: installed here, or on another server.

    Attributes:
        name: unique name, also the directory's name; "model@server" for one of another server.
        family: MLC model_type ("llama"); empty where it is not known.
        quantization: MLC's name ("q4f16_1"); empty where it is not known.
        parameters: number of weights, or None where the directory does not tell.
        bytes: size of the weights on this machine's disk.
        context: tokens of context window; 0 where it is not known.
        created: Unix time of the directory, or when another server says it was made; 0 where it is not known.
        builtin: shipped with Hob.
        upstream: name of the server that answers, as the settings have it; empty for this machine.
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
    upstream: str = ""
    note: str = ""
    problem: str = ""


class Gpu(Frozen):
    """A graphics processor, real or imitated.

    Attributes:
        name: as its driver or the system calls it.
        vendor: "nvidia", "amd", "intel", "apple", "broadcom", "arm", …; empty when unknown.
        kind: "discrete" has memory of its own, "integrated" shares the machine's, "software" is the CPU.
        memory: bytes of its own, or None where it has none or the driver does not tell.
        compute_capability: CUDA's version of what it can do ("8.7"); empty where CUDA does not run.
        vulkan: version of Vulkan its driver offers ("1.3.255"); empty where none does, or none was asked.
        metal: whether Apple's Metal runs on it.
        driver: the system's driver for it; empty when none is loaded or known.
    """

    name: str
    vendor: str = ""
    kind: Literal["discrete", "integrated", "software", "unknown"] = "unknown"
    memory: int | None = None
    compute_capability: str = ""
    vulkan: str = ""
    metal: bool = False
    driver: str = ""


class Hardware(Frozen):
    """What this machine is.

    Attributes:
        board: the vendor's name of the machine ("Raspberry Pi 5 Model B Rev 1.0"); empty when unknown.
        cpu: the processor's name.
        architecture: as `uname -m` says ("x86_64", "aarch64").
        features: the CPU's instruction set extensions that matter to the engine, sorted.
        cores: physical cores.
        threads: logical processors.
        memory, available: bytes of RAM, all of it and what is free for use now; in a container, of its share.
        gpus: graphics processors, best first.
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
