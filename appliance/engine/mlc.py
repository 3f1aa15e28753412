"""MLC-LLM's own engine in the engine process: `python -m appliance.engine.mlc`, where `mlc_llm` is installed.

The same messages, directories and token ids as the native engine. MLC-LLM batches by itself, so requests for
the loaded model run side by side; one for another model waits until those before it have ended.

Written against `python/mlc_llm/serve/engine.py` of mlc-ai/mlc-llm, July 2026. Its OpenAI-shaped methods take
token ids too, but neither stop tokens nor repetition_penalty; `AsyncMLCEngine._generate`, which they and
MLC-LLM's tests call, takes everything.
"""

import asyncio
import functools
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.engine import worker
from appliance.engine.messages import (
    Finished,
    Generate,
    Load,
    Loaded,
    ModelRef,
    Reply,
    Sampling,
    ScoredText,
    Text,
    TextScore,
)
from appliance.engine.runner import Activity, check_prompt, failure, resident_bytes
from appliance.errors import HobError, InvalidRequestError, ModelLoadError
from builder.compile.mlc import read_config
from builder.errors import BuildError

log = logging.getLogger(__name__)

# What MLC-LLM's sampler does not have, and what asking for nothing looks like.
UNKNOWN = {"top_k": 0, "min_p": 0.0}


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way: seconds on the monotonic clock, 0 for what has not happened; tokens sent."""

    request: Generate | Load
    arrived: float = field(default_factory=time.monotonic)
    began: float = 0.0
    answering: float = 0.0
    generated: int = 0
    task: asyncio.Task[Reply] | None = None


class MLCRunner:
    """As `runner.Runner`, on MLC-LLM's engine. Belongs to the event loop it is made in."""

    def __init__(self, reply: Callable[[int, Reply], None]) -> None:
        self._reply = reply
        self._jobs: dict[tuple[int, str], Job] = {}
        self._turn = asyncio.Lock()  # waiters get it in order
        self._switching: asyncio.Task[None] | None = None
        self._quiet = asyncio.Event()  # no generation is under way
        self._quiet.set()
        self._running = 0
        self._engine: Any = None  # mlc_llm has no types
        self._model: ModelRef | None = None
        self._vocab_size = 0
        self._idle_since = time.monotonic()

    def start(self) -> None:
        """The engine starts with the first model."""

    def stop(self, timeout: float) -> bool:
        """As `worker.Runs.stop`."""
        if self._engine is None:
            return True
        # It joins threads of its own, which may be within a long step.
        ending = threading.Thread(target=self._engine.terminate, daemon=True)
        ending.start()
        ending.join(timeout)
        return not ending.is_alive()

    def submit(self, client: int, request: Generate | Load) -> None:
        """As `worker.Runs.submit`. One whose id the client still uses fails at once."""
        key = client, request.id
        if key in self._jobs:
            error = InvalidRequestError(f"request id {request.id!r} is in use", param="id")
            self._reply(client, failure(request.id, error))
            return
        job = self._jobs[key] = Job(request)
        job.task = asyncio.get_running_loop().create_task(self._serve(client, job))
        job.task.add_done_callback(functools.partial(self._ended, client, job))

    def cancel(self, client: int, request_id: str) -> None:
        """As `worker.Runs.cancel`; unknown ids have ended already."""
        job = self._jobs.get((client, request_id))
        if job and job.task:
            job.task.cancel()

    def forget(self, client: int) -> None:
        """As `worker.Runs.forget`."""
        for owner, request_id in list(self._jobs):
            if owner == client:
                self.cancel(client, request_id)

    def activity(self) -> Activity:
        """As `worker.Runs.activity`."""
        return Activity(
            model=self._model,
            waiting=len(self._jobs) - self._running,
            running=self._running,
            idle=0.0 if self._jobs else time.monotonic() - self._idle_since,
        )

    async def _serve(self, client: int, job: Job) -> Reply:
        """See one request to its end; returns its last reply."""
        request = job.request
        async with self._turn:
            await self._switch(request.model)
            job.began = time.monotonic()
            if isinstance(request, Generate):
                self._running += 1
                self._quiet.clear()
        if isinstance(request, Generate):
            return await self._generate(client, request, job)
        return Loaded(id=request.id, seconds=job.began - job.arrived, rss=resident_bytes())

    def _ended(self, client: int, job: Job, task: asyncio.Task[Reply]) -> None:
        """Send the last reply: a task that is cancelled before it begins does not come to send one itself."""
        request = job.request
        if isinstance(request, Generate) and job.began:
            self._running -= 1
            if not self._running:
                self._quiet.set()
        del self._jobs[client, request.id]
        self._idle_since = time.monotonic()
        if task.cancelled():
            prompt = len(request.prompt_ids) if isinstance(request, Generate) else 0
            self._reply(client, _finished(job, "cancelled", prompt, job.generated))
        elif isinstance(error := task.exception(), Exception):
            if not isinstance(error, (HobError, BuildError)):
                log.error("request %s failed", request.id, exc_info=error)
            self._reply(client, failure(request.id, error))
        else:
            self._reply(client, task.result())

    async def _switch(self, model: ModelRef | None) -> None:
        """Make `model` the loaded one once nothing runs. Cancelled, it goes on; the next one waits for it."""
        if self._switching:
            await asyncio.wait([self._switching])
        if model == self._model:
            return
        await self._quiet.wait()
        self._switching = asyncio.create_task(self._exchange(model))
        # Where nobody is left to learn of an error, the next request meets it again.
        self._switching.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._switching)

    async def _exchange(self, model: ModelRef | None) -> None:
        """Close the loaded model, then load `model`: there may not be room for both."""
        old, self._engine, self._model = self._engine, None, None
        if old is not None:
            await asyncio.to_thread(old.terminate)
        if model is not None:
            log.info("loading %s", model.directory)
            self._vocab_size = int(read_config(Path(model.directory))["vocab_size"])
            self._engine = await asyncio.to_thread(open_engine, model)
            self._model = model

    async def _generate(self, client: int, request: Generate, job: Job) -> Finished:
        """Run a generation and send its text; returns its last reply."""
        check_prompt(request, self._vocab_size, request.model.context)
        settings = generation_config(request)
        reason, prompt_tokens, completion_tokens = "", len(request.prompt_ids), 0
        outputs: AsyncGenerator[list[Any], None] = self._engine._generate(
            request.prompt_ids, settings, f"{client}-{request.id}"
        )
        async with aclosing(outputs):
            async for (output,) in outputs:  # one list entry per parallel answer, and one is asked for
                if output.request_final_usage_json_str is not None:
                    usage = json.loads(output.request_final_usage_json_str)
                    prompt_tokens, completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
                    continue
                job.answering = job.answering or time.monotonic()
                reason = output.finish_reason or reason
                scores = [_scored(line) for line in output.delta_logprob_json_strs or ()]
                if output.delta_text or scores:
                    # Without scores it does not tell how many tokens a piece has; nearly always it is one.
                    count = len(scores) or 1
                    job.generated += count
                    text = Text(id=request.id, text=output.delta_text, count=count, scores=scores)
                    self._reply(client, text)
        return _finished(job, reason, prompt_tokens, completion_tokens)


def open_engine(model: ModelRef) -> Any:
    """MLC-LLM's engine with a model. It compiles its own library the first time, which takes minutes.

    Raises:
        ModelLoadError: it cannot; the message is MLC-LLM's.
    """
    try:
        from mlc_llm.serve import AsyncMLCEngine, EngineConfig

        config = EngineConfig(max_single_sequence_length=model.context, verbose=False)
        return AsyncMLCEngine(model.directory, mode="local", engine_config=config)
    except ImportError as error:
        raise ModelLoadError(
            f"MLC-LLM is not installed: {error}",
            hint='Install it, or set engine = "native"; docs/engines.md says more.',
        ) from error
    except Exception as error:  # TVM and MLC-LLM raise whatever they meet
        raise ModelLoadError(
            f"MLC-LLM cannot load {model.directory}: {type(error).__name__}: {error}"
        ) from error


def generation_config(request: Generate) -> Any:
    """A request as MLC-LLM's `GenerationConfig`.

    Raises:
        InvalidRequestError: it names a setting that MLC-LLM does not have.
    """
    from mlc_llm.protocol.generation_config import GenerationConfig

    sampling: Sampling = request.sampling
    for name, off in UNKNOWN.items():
        if getattr(sampling, name) != off:
            raise InvalidRequestError(
                f"{name}: MLC-LLM does not have it", param=name, hint='engine = "native" has.'
            )
    return GenerationConfig(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=sampling.logit_bias or None,
        seed=sampling.seed,
        logprobs=sampling.top_logprobs is not None,
        top_logprobs=sampling.top_logprobs or 0,
        max_tokens=request.max_tokens,
        stop_token_ids=request.stop_token_ids,
    )


def _scored(line: str) -> ScoredText:
    """One token's scores out of the JSON that MLC-LLM's engine writes of them."""
    entry = json.loads(line)
    return ScoredText(chosen=_score(entry), top=[_score(other) for other in entry.get("top_logprobs", ())])


def _score(entry: dict[str, Any]) -> TextScore:
    return TextScore(raw=bytes(entry["bytes"]), logprob=entry["logprob"])


def _finished(job: Job, reason: str, prompt_tokens: int, completion_tokens: int) -> Finished:
    """The end of a job that met no error; one that was cancelled while it waited has only `queue`."""
    now = time.monotonic()
    began = job.began or now
    answering = job.answering or now
    return Finished(
        id=job.request.id,
        reason=reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        queue=began - job.arrived,
        prefill=answering - began,
        decode=now - answering,
    )


if __name__ == "__main__":
    worker.main(make_runner=MLCRunner)
