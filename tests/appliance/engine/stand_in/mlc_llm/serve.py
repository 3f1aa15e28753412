"""As mlc_llm.serve: an engine that says the numbers after the last id of the prompt.

It works on a thread of its own and hands its pieces to the event loop, as the real one does. What it is asked
for it writes to `calls.jsonl` in the model's folder.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mlc_llm.protocol.generation_config import GenerationConfig

STEP = 0.002
"""Seconds for a token."""


@dataclass
class EngineConfig:
    """Some fields of the real one."""

    max_num_sequence: int | None = None
    max_total_sequence_length: int | None = None
    max_single_sequence_length: int | None = None
    verbose: bool = True


@dataclass
class CallbackStreamOutput:
    """A piece of an answer; the last one has the counts and nothing else."""

    delta_text: str
    delta_logprob_json_strs: list[str] | None
    finish_reason: str | None
    request_final_usage_json_str: str | None


class AsyncMLCEngine:
    """One model. Requests run side by side."""

    def __init__(
        self,
        model: str,
        device: str = "auto",
        *,
        model_lib: str | None = None,
        mode: Literal["local", "interactive", "server"] = "local",
        engine_config: EngineConfig | None = None,
        enable_tracing: bool = False,
    ) -> None:
        self._folder = Path(model)
        json.loads((self._folder / "mlc-chat-config.json").read_text())
        if (self._folder / "broken").exists():
            raise RuntimeError("TVMError: no kernel image is available")
        self._terminated = False
        self._aborted: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._note(
            "load",
            device=device,
            model_lib=model_lib,
            mode=mode,
            config=asdict(engine_config or EngineConfig()),
        )

    def terminate(self) -> None:
        """End all work; returns when its threads have ended."""
        if not self._terminated:
            self._terminated = True
            for thread in self._threads:
                thread.join()
            self._note("terminate")

    async def abort(self, request_id: str) -> None:
        """End a request."""
        self._abort(request_id)

    def _abort(self, request_id: str) -> None:
        self._aborted.add(request_id)
        self._note("abort", id=request_id)

    async def _generate(
        self, prompt: str | list[int] | list[Any], generation_config: GenerationConfig, request_id: str
    ) -> AsyncGenerator[list[CallbackStreamOutput], Any]:
        assert isinstance(prompt, list)
        assert all(isinstance(token, int) for token in prompt)
        if self._terminated:
            raise ValueError("The AsyncThreadedEngine has terminated.")
        self._note("generate", id=request_id, prompt=prompt, config=asdict(generation_config))
        pieces: asyncio.Queue[CallbackStreamOutput | None] = asyncio.Queue()
        arguments = (asyncio.get_running_loop(), pieces, prompt, generation_config, request_id)
        thread = threading.Thread(target=self._work, args=arguments)
        self._threads.append(thread)
        thread.start()
        try:
            while (piece := await pieces.get()) is not None:
                yield [piece]
        except BaseException:
            self._abort(request_id)
            raise

    def _work(
        self,
        loop: asyncio.AbstractEventLoop,
        pieces: "asyncio.Queue[CallbackStreamOutput | None]",
        prompt: list[int],
        config: GenerationConfig,
        request_id: str,
    ) -> None:
        count, token, reason = 0, prompt[-1], ""
        while not reason and not self._terminated and request_id not in self._aborted:
            time.sleep(STEP)
            token += 1
            count += 1
            if token in (config.stop_token_ids or ()):
                reason, text = "stop", ""
            else:
                reason = "length" if count == config.max_tokens else ""
                text = f"{token} "
            scores = [json.dumps(self._score(text, config.top_logprobs))] if config.logprobs else None
            piece = CallbackStreamOutput(text, scores, reason or None, None)
            loop.call_soon_threadsafe(pieces.put_nowait, piece)
        counts = {
            "prompt_tokens": len(prompt),
            "completion_tokens": count,
            "total_tokens": len(prompt) + count,
        }
        usage = CallbackStreamOutput("", None, None, json.dumps(counts))
        if not self._terminated:
            loop.call_soon_threadsafe(pieces.put_nowait, usage)
            loop.call_soon_threadsafe(pieces.put_nowait, None)

    @staticmethod
    def _score(text: str, top: int) -> dict[str, Any]:
        score = {"token": text, "logprob": -0.25, "bytes": list(text.encode())}
        return {**score, "top_logprobs": [score] * top}

    def _note(self, call: str, **details: Any) -> None:
        with (self._folder / "calls.jsonl").open("a") as file:
            file.write(json.dumps({"call": call, **details}) + "\n")
