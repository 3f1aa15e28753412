"""What the service and the engine process say to each other: MessagePack frames over a Unix socket.

Every frame is a 4-byte big-endian length and one MessagePack-encoded message. Each request has a failure
form (`Failed`). The engine process imports this module, so it stays free of the web stack.
"""

from typing import TypedDict

from msgspec import Struct


class Sampling(Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Field names and meanings are those of OpenAI's and MLC-LLM's APIs.

    temperature 0 is greedy. top_p 1, top_k 0, min_p 0 and penalties of 0 (repetition 1) are off.
    `top_logprobs` None: no logprobs; n >= 0: the chosen token's logprob and the n best.
    Logprobs are of the model's distribution, before penalties, temperature and filters.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    top_logprobs: int | None = None


class Wishes(TypedDict, total=False):
    """What a request says about sampling, as in `Sampling`; where it is silent the model's settings hold."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: dict[int, float]
    seed: int
    top_logprobs: int


class ModelRef(Struct, frozen=True, kw_only=True):
    """Where a model lies: an MLC directory, the library compiled for it, tokens of context to reserve.

    `library` is empty for an engine that compiles by itself; `target` is what it was compiled for, as the
    compiler names it ("cpu", "cuda-sm_87").
    """

    directory: str
    library: str
    context: int
    target: str = "cpu"


class Load(Struct, frozen=True, kw_only=True, tag="load"):
    """Make this model the loaded one; None frees the loaded one. Answered by `Loaded` or `Failed`."""

    id: str
    model: ModelRef | None


class Generate(Struct, frozen=True, kw_only=True, tag="generate"):
    """Continue `prompt_ids`. Answered by any number of `Tokens` or `Text`, then by `Finished` or `Failed`."""

    id: str
    model: ModelRef
    prompt_ids: list[int]
    max_tokens: int
    stop_token_ids: list[int]
    sampling: Sampling


class Cancel(Struct, frozen=True, kw_only=True, tag="cancel"):
    """Stop request `id` within one token. Answered by that request's `Finished(reason="cancelled")`."""

    id: str


class AskStats(Struct, frozen=True, kw_only=True, tag="ask_stats"):
    """Answered by `Stats`."""

    id: str


class Loaded(Struct, frozen=True, kw_only=True, tag="loaded"):
    """The model is ready, or freed; `seconds` it took, resident bytes of the process."""

    id: str
    seconds: float
    rss: int


class TokenScore(Struct, frozen=True, array_like=True):
    """A token id and its natural-log probability."""

    token: int
    logprob: float


class Token(Struct, frozen=True, kw_only=True):
    """One generated token; `top` best first, present only when logprobs were asked for."""

    token: int
    logprob: float | None = None
    top: list[TokenScore] = []


class Tokens(Struct, frozen=True, kw_only=True, tag="tokens"):
    """Generated tokens, in order. Stop tokens are never among them."""

    id: str
    tokens: list[Token]


class TextScore(Struct, frozen=True, array_like=True):
    """The bytes of a token and its natural-log probability."""

    raw: bytes
    logprob: float


class ScoredText(Struct, frozen=True, kw_only=True):
    """One generated token's score, and those of the best tokens at its place, best first."""

    chosen: TextScore
    top: list[TextScore] = []


class Text(Struct, frozen=True, kw_only=True, tag="text"):
    """Generated text, in order, from an engine that detokenises by itself. No character is split.

    `count` tokens made it; `scores` only when logprobs were asked for.
    """

    id: str
    text: str
    count: int
    scores: list[ScoredText] = []


class Finished(Struct, frozen=True, kw_only=True, tag="finished"):
    """The end of a generation: reason "stop" | "length" | "cancelled"; seconds per phase."""

    id: str
    reason: str
    prompt_tokens: int
    completion_tokens: int
    queue: float
    prefill: float
    decode: float


class Failed(Struct, frozen=True, kw_only=True, tag="failed"):
    """Request `id` cannot be served. `code` is that of an `appliance.errors` class."""

    id: str
    code: str
    message: str
    hint: str = ""


class Stats(Struct, frozen=True, kw_only=True, tag="stats"):
    """State of the engine process.

    Attributes:
        model: directory of the loaded model; "" if none is.
        waiting, running: requests in the queue and under way.
        rss: resident bytes.
        idle: seconds since the last request ended; 0 while one is open.
    """

    id: str
    model: str
    waiting: int
    running: int
    rss: int
    idle: float = 0.0


Request = Load | Generate | Cancel | AskStats
Reply = Loaded | Tokens | Text | Finished | Failed | Stats
