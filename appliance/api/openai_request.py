"""What a chat completion request may say: fields, ranges, and what is refused. Pure: bytes in, values out."""

from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from appliance.domain import Message, Role
from appliance.engine.messages import Wishes
from appliance.errors import InvalidRequestError

SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
)


class Turn(BaseModel):
    """One message of the conversation. Text parts are joined; `developer` is the newer name of `system`."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str = ""
    tool_calls: None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, content: object) -> object:
        if content is None:
            return ""
        if not isinstance(content, list):
            return content
        texts = []
        for number, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
                raise PydanticCustomError(
                    "unsupported_part",
                    "part {number} is {kind}; this model reads text parts only",
                    {"number": number, "kind": repr(kind)},
                )
            texts.append(part[kind])
        return "\n".join(texts)


class StreamOptions(BaseModel):
    """How a stream is dressed."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """The only format so far is plain text."""

    type: Literal["text"]


Bias = Annotated[float, Field(ge=-100, le=100)]


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. A field of null counts as absent."""

    model_config = ConfigDict(strict=True)

    messages: Annotated[list[Turn], Field(min_length=1)]
    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[int, Bias] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    n: Literal[1] | None = None
    tools: Annotated[list[None], Field(max_length=0)] | None = None
    functions: Annotated[list[None], Field(max_length=0)] | None = None

    def conversation(self) -> list[Message]:
        """The messages in our own words."""
        return [Message(role=_role(turn.role), content=turn.content) for turn in self.messages]

    def wishes(self) -> Wishes:
        """What is asked for; where it is silent the model's own settings hold."""
        asked = {name: value for name in SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        if self.logprobs:
            asked["top_logprobs"] = self.top_logprobs or 0
        return cast(Wishes, asked)  # the fields have the same names and types

    def length(self) -> int | None:
        """Upper bound of the answer in tokens; the newer field wins."""
        return self.max_completion_tokens or self.max_tokens

    def stops(self) -> list[str]:
        """Texts that end the answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    def wants_usage(self) -> bool:
        """Whether the stream's last chunk shall hold the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


UNSUPPORTED = {
    "tools": "tools are not supported yet",
    "functions": "functions are not supported yet",
    "tool_calls": "tool calls are not supported yet",
    "n": "only one answer per request is supported yet",
    "response_format": "only the format 'text' is supported yet",
}


def parse(body: bytes) -> ChatRequest:
    """Read and check a request.

    Raises:
        InvalidRequestError: not JSON, or a field is missing, of the wrong type, out of range or unsupported;
            `param` and message name it.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explained(error) from error
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequestError(
            "top_logprobs needs logprobs", param="top_logprobs", hint='Set "logprobs": true.'
        )
    return request


def _explained(error: ValidationError) -> InvalidRequestError:
    """The first thing wrong with a request, in one line."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return InvalidRequestError(f"the body is not valid JSON: {first['msg']}", code="invalid_json")
    path = first["loc"]
    # Beyond the field itself the path names branches of unions, which say nothing to a client.
    if path and path[0] in ("stop", *UNSUPPORTED):
        path = path[:1]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    name = path[-1] if path else ""
    if isinstance(name, str) and name in UNSUPPORTED:
        return InvalidRequestError(f"{param}: {UNSUPPORTED[name]}", param=param, code="unsupported_value")
    if first["type"] == "missing":
        return InvalidRequestError(f"{param} is missing", param=param, code="missing_required_parameter")
    value = repr(first["input"])
    shown = value if len(value) <= 60 else f"{value[:60]}…"
    return InvalidRequestError(f"{param or 'the body'}: {first['msg']} (got {shown})", param=param or None)


def _role(role: str) -> Role:
    return "system" if role in ("system", "developer") else "assistant" if role == "assistant" else "user"
