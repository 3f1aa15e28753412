"""The thread that computes: takes steps from the scheduler, drives the model, sends replies."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from appliance.engine.messages import (
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    ModelRef,
    Reply,
    Token,
    Tokens,
)
from appliance.engine.sampler import Sampler
from appliance.engine.scheduler import Admit, Decode, End, Job, Prefill, Scheduler, Step, Switch
from appliance.errors import ContextLengthError, HobError, InvalidRequestError, ModelLoadError
from appliance.library.lock import in_use
from builder.errors import BuildError

log = logging.getLogger(__name__)

# Most prompt tokens between two looks for a cancelled request: a long chunk keeps a slow processor busy for
# seconds with what nobody wants any more, a short one reads all weights for little work.
MAX_CHUNK = 128

# One sequence at a time; its number in the model's KV cache.
_SEQUENCE = 0


class Model(Protocol):
    """A loaded model, as `native.NativeModel` has it. Logits are float32, [V] or [batch, V]."""

    vocab_size: int
    context: int
    prefill_chunk: int

    def add_sequence(self, seq: int) -> None:
        """Begin an empty sequence."""

    def remove_sequence(self, seq: int) -> None:
        """Free a sequence and its KV cache."""

    def prefill(self, seq: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append prompt tokens; logits [V] of the last one."""

    def decode(self, seqs: Sequence[int], ids: Sequence[int]) -> NDArray[np.float32]:
        """Append one token to each sequence; logits [len(seqs), V]."""

    def close(self) -> None:
        """Free everything."""


Loader = Callable[[ModelRef], Model]


@dataclass(frozen=True, slots=True)
class Activity:
    """What the runner is doing: the loaded model, how many jobs wait and run, and for how many seconds
    there has been none.
    """

    model: ModelRef | None
    waiting: int
    running: int
    idle: float


class Runner:
    """Runs jobs one after the other on a thread of its own.

    All methods may be called from any thread and return at once. `reply` is called on the runner's thread,
    or, for a job that is cancelled while it waits, on the caller's; it must neither block nor raise.
    An error ends the job that met it, never the thread.
    """

    def __init__(self, load: Loader, reply: Callable[[int, Reply], None]) -> None:
        self._load = load
        self._reply = reply
        self._scheduler = Scheduler()
        # Guards the scheduler and `_stopping`; never held while the model computes.
        self._changed = threading.Condition()
        self._stopping = False
        self._rested = time.monotonic()  # when the last job ended
        # Only the thread touches these; others read `_loaded`.
        self._model: Model | None = None
        self._loaded: ModelRef | None = None
        self._held = contextlib.ExitStack()  # the model's directory, while it is loaded
        self._sampler: Sampler | None = None
        # A daemon, so that a wedged kernel cannot keep a stopped process alive.
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End without answering open jobs. True if the thread ended, and the model is closed, in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, client: int, request: Generate | Load) -> None:
        """Queue a request. One whose id the client still uses fails at once."""
        with self._changed:
            if self._scheduler.find(client, request.id):
                error = InvalidRequestError(f"request id {request.id!r} is in use", param="id")
                self._reply(client, failure(request.id, error))
                return
            self._scheduler.add(Job(client, request, arrived=time.monotonic()))
            self._changed.notify()

    def cancel(self, client: int, request_id: str) -> None:
        """End a request within one token (or one chunk of its prompt); unknown ids have ended already."""
        with self._changed:
            job = self._scheduler.find(client, request_id)
            if job and self._scheduler.cancel(job):
                self._reply(client, finished(job))

    def forget(self, client: int) -> None:
        """End all requests of a client that has gone."""
        with self._changed:
            self._scheduler.forget(client)

    def activity(self) -> Activity:
        """What goes on now."""
        with self._changed:
            waiting, running = len(self._scheduler.waiting), int(self._scheduler.running is not None)
            idle = 0.0 if waiting or running else time.monotonic() - self._rested
            return Activity(self._loaded, waiting, running, idle)

    def _run(self) -> None:
        """The thread: steps until stopped."""
        while step := self._next():
            try:
                self._perform(step)
            except Exception as error:  # noqa: BLE001 - whatever one job meets, the next one is served
                self._fail(step.job, error)
        self._close_model()

    def _next(self) -> Step | None:
        """The next step, waiting for one; None once the runner stops."""
        with self._changed:
            while not self._stopping:
                step = self._scheduler.next(
                    self._loaded,
                    chunk=min(self._model.prefill_chunk, MAX_CHUNK) if self._model else 1,
                    context=self._model.context if self._model else 0,
                )
                if step:
                    return step
                self._changed.wait()
        return None

    def _perform(self, step: Step) -> None:
        """Do one step. Raises whatever the model or the request's own values raise."""
        job = step.job
        match step:
            case Switch():
                if isinstance(job.request, Load):
                    job.began = time.monotonic()
                self._switch(job.request.model)
            case Admit():
                job.began = time.monotonic()
                self._admit(job)
                with self._changed:
                    self._scheduler.admitted(job)
            case Prefill(count=count):
                ids = _generate(job).prompt_ids[job.prefilled : job.prefilled + count]
                logits = self._ready().prefill(_SEQUENCE, ids)
                with self._changed:
                    complete = self._scheduler.prefilled(job, count)
                if complete:
                    job.answering = time.monotonic()
                    self._sample(job, logits)
            case Decode():
                logits = self._ready().decode([_SEQUENCE], [job.last])
                self._sample(job, logits[0])
            case End():
                self._release(job)
                with self._changed:
                    self._end(job)
                self._reply(job.client, self._last_word(job))

    def _switch(self, model: ModelRef | None) -> None:
        """Close the loaded model, then load `model`, if any: there may not be room for both."""
        self._close_model()
        if model is None:
            return
        log.info("loading %s", model.directory)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(FileNotFoundError):  # the loader says it better
                held.enter_context(in_use(Path(model.directory)))
            try:
                self._model = self._load(model)
            except (HobError, BuildError):
                raise
            except Exception as error:
                raise ModelLoadError(
                    f"{model.directory} cannot be loaded: {type(error).__name__}: {error}"
                ) from error
            self._loaded, self._held = model, held.pop_all()

    def _admit(self, job: Job) -> None:
        """Check a request against the model and give it a sampler and a sequence."""
        request, model = _generate(job), self._ready()
        check_prompt(request, model.vocab_size, model.context)
        self._sampler = Sampler(request.sampling, request.prompt_ids, model.vocab_size)
        model.add_sequence(_SEQUENCE)

    def _sample(self, job: Job, logits: NDArray[np.float32]) -> None:
        """Choose the next token and send it."""
        assert self._sampler
        token: Token = self._sampler.sample(logits)
        with self._changed:
            wanted = self._scheduler.sampled(job, token.token)
        if wanted:
            self._reply(job.client, Tokens(id=job.request.id, tokens=[token]))

    def _last_word(self, job: Job) -> Reply:
        """The reply that ends a job which met no error."""
        if isinstance(job.request, Load) and job.finish is None:
            seconds = time.monotonic() - job.began if job.began else 0.0  # it was loaded already
            return Loaded(id=job.request.id, seconds=seconds, rss=resident_bytes())
        return finished(job)

    def _fail(self, job: Job, error: Exception) -> None:
        """End a job with what went wrong."""
        if not isinstance(error, (HobError, BuildError)):
            log.error("request %s failed", job.request.id, exc_info=error)
        try:
            self._release(job)
        except Exception:
            log.exception("the model is closed, because it cannot free a sequence")
            self._close_model()
        with self._changed:
            self._end(job)
        self._reply(job.client, failure(job.request.id, error))

    def _end(self, job: Job) -> None:
        """Take a job off the books; the caller holds the lock."""
        self._scheduler.end(job)
        self._rested = time.monotonic()

    def _release(self, job: Job) -> None:
        """Free what the job holds."""
        self._sampler = None
        if job.admitted:
            self._ready().remove_sequence(_SEQUENCE)

    def _close_model(self) -> None:
        """Free the loaded model, if any."""
        model, self._model, self._loaded, self._sampler = self._model, None, None, None
        self._held.close()
        if model:
            model.close()

    def _ready(self) -> Model:
        """The loaded model, where the scheduler guarantees one."""
        assert self._model
        return self._model


def _generate(job: Job) -> Generate:
    """The request of a job that the scheduler treats as a generation."""
    assert isinstance(job.request, Generate)
    return job.request


def check_prompt(request: Generate, vocab_size: int, context: int) -> None:
    """Raise `InvalidRequestError` or `ContextLengthError` unless the model can continue the prompt.

    Kernels do not check ids, so an unknown one would read foreign memory.
    """
    if request.max_tokens < 0:
        raise InvalidRequestError(f"max_tokens is {request.max_tokens}", param="max_tokens")
    if not request.prompt_ids:
        raise InvalidRequestError("the prompt is empty", param="messages")
    low, high = min(request.prompt_ids), max(request.prompt_ids)
    if low < 0 or high >= vocab_size:
        raise InvalidRequestError(
            f"the prompt has token {low if low < 0 else high}; the model has 0 to {vocab_size - 1}",
            param="messages",
            hint="The tokenizer's files and the weights are not of the same model.",
        )
    if len(request.prompt_ids) >= context:
        raise ContextLengthError(
            f"the prompt has {len(request.prompt_ids)} tokens; the context window has {context}",
            param="messages",
            hint="Shorten the conversation, or raise the setting `context`.",
        )


def finished(job: Job) -> Finished:
    """The end of a job that met no error. A job cancelled while it waited has only `queue`."""
    now = time.monotonic()
    began = job.began or now
    answering = job.answering or now
    return Finished(
        id=job.request.id,
        reason=job.finish or "cancelled",
        prompt_tokens=len(job.request.prompt_ids) if isinstance(job.request, Generate) else 0,
        completion_tokens=job.generated,
        queue=began - job.arrived,
        prefill=answering - began,
        decode=now - answering,
    )


def failure(request_id: str, error: Exception) -> Failed:
    """An error as it goes over the wire."""
    match error:
        case HobError():
            return Failed(id=request_id, code=error.code, message=error.message, hint=error.hint)
        case BuildError():  # a damaged directory, a stale library
            return Failed(id=request_id, code=ModelLoadError.code, message=str(error), hint=error.hint)
        case _:
            message = f"the engine failed: {type(error).__name__}: {error}"
            return Failed(id=request_id, code=HobError.code, message=message)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)
