"""Decides what the engine does next. Pure: no clock, no thread, no model.

Requests run one after the other in the order of their arrival. Whoever computes asks `next` for a step,
does it, and tells the outcome (`admitted`, `prefilled`, `sampled`, `end`). Between two steps anything may
be added or cancelled, so a cancelled request ends after the step that is being computed: one token or one
chunk. Several requests at a time would make `running` a list and `Decode` a batch.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from appliance.engine.messages import Generate, Load, ModelRef

Finish = Literal["stop", "length", "cancelled"]


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through the engine.

    Attributes:
        client: number of the connection that asked.
        request: what it asked for.
        arrived, began, answering: seconds on the runner's clock when it arrived, left the queue, and had
            its prompt done; 0 until then. The scheduler does not look at them.
        admitted: it was found good and has a sequence in the KV cache.
        prefilled: prompt tokens that are in the KV cache.
        generated: tokens that were sent.
        last: the token to decode next; -1 before the first.
        finish: why it ends, once that is known.
    """

    client: int
    request: Generate | Load
    arrived: float = 0.0
    began: float = 0.0
    answering: float = 0.0
    admitted: bool = False
    prefilled: int = 0
    generated: int = 0
    last: int = -1
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Switch:
    """Close the model that is loaded, load the one that `job` needs, if it needs one."""

    job: Job


@dataclass(frozen=True, slots=True)
class Admit:
    """Check the job against the loaded model and give it a sequence in the KV cache."""

    job: Job


@dataclass(frozen=True, slots=True)
class Prefill:
    """Put the next `count` prompt tokens into the KV cache; sample if they were the last ones."""

    job: Job
    count: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Put `job.last` into the KV cache and sample."""

    job: Job


@dataclass(frozen=True, slots=True)
class End:
    """Free what the job holds and send its last reply."""

    job: Job


Step = Switch | Admit | Prefill | Decode | End


@dataclass(slots=True)
class Scheduler:
    """First come, first served. Every job that is added ends exactly once: by `End`, `cancel` or `forget`."""

    waiting: deque[Job] = field(default_factory=deque)
    running: Job | None = None

    def add(self, job: Job) -> None:
        """Queue a job behind all others."""
        self.waiting.append(job)

    def find(self, client: int, request_id: str) -> Job | None:
        """The open job of that name."""
        jobs = (self.running, *self.waiting) if self.running else self.waiting
        return next((job for job in jobs if (job.client, job.request.id) == (client, request_id)), None)

    def cancel(self, job: Job) -> bool:
        """End `job`: at once (True) if it was waiting, else after the current step, by `End` (False)."""
        if job is self.running:
            job.finish = job.finish or "cancelled"
            return False
        self.waiting.remove(job)
        job.finish = "cancelled"
        return True

    def forget(self, client: int) -> None:
        """Cancel every job of a client that has gone."""
        self.waiting = deque(job for job in self.waiting if job.client != client)
        if self.running and self.running.client == client:
            self.cancel(self.running)

    def next(self, loaded: ModelRef | None, *, chunk: int, context: int) -> Step | None:
        """What to do now, or None when nothing is asked for.

        Args:
            loaded: the model that is ready, if any.
            chunk: most prompt tokens of one `Prefill`.
            context: tokens that prompt and answer may have together in the loaded model.
        """
        if self.running is None:
            if not self.waiting:
                return None
            self.running = self.waiting.popleft()
        job = self.running
        if job.finish:
            return End(job)
        if job.request.model != loaded:
            return Switch(job)
        if isinstance(job.request, Load):
            return End(job)
        if not job.admitted:
            return Admit(job)
        prompt = len(job.request.prompt_ids)
        if job.generated >= min(job.request.max_tokens, context - prompt):
            job.finish = "length"
            return End(job)
        if job.prefilled < prompt:
            return Prefill(job, min(chunk, prompt - job.prefilled))
        return Decode(job)

    def admitted(self, job: Job) -> None:
        """Record an `Admit`."""
        job.admitted = True

    def prefilled(self, job: Job, count: int) -> bool:
        """Record a `Prefill`. True if the prompt is complete, so that its logits are to be sampled."""
        assert isinstance(job.request, Generate)
        job.prefilled += count
        return job.prefilled == len(job.request.prompt_ids)

    def sampled(self, job: Job, token: int) -> bool:
        """Record a sampled token. True if it is to be sent: not a stop token, and nobody has cancelled."""
        assert isinstance(job.request, Generate)
        if job.finish:
            return False
        if token in job.request.stop_token_ids:
            job.finish = "stop"
            return False
        job.last = token
        job.generated += 1
        return True

    def end(self, job: Job) -> None:
        """Record an `End`, or that the running job failed."""
        assert job is self.running
        self.running = None
