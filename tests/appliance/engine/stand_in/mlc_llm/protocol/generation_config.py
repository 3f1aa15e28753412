"""As mlc_llm.protocol.generation_config."""

from dataclasses import dataclass


@dataclass
class GenerationConfig:
    """The fields of the real one, which is a pydantic model."""

    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    logit_bias: dict[int, float] | None = None
    max_tokens: int = -1
    seed: int | None = None
    stop_strs: list[str] | None = None
    stop_token_ids: list[int] | None = None
    response_format: object | None = None
    debug_config: object | None = None
