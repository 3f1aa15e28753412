"""Long work on models, such as adding one, and which models are to stay in memory."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from appliance.errors import ConflictError
from appliance.store.connection import Connection, known

JobState = Literal["waiting", "running", "done", "failed", "cancelled", "interrupted"]

CUT_OFF = "Hob was switched off before it was done."


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of long work.

    Attributes:
        verb: what is done, such as "add"; a verb of `hob model`.
        subject: what it is done to, for people: a source, or a model's name.
        arguments: what the verb is given, as on the command line.
        state: "waiting" and "running" are open, the others are ends.
        model: name of the model that came of it; "" while there is none.
        error, hint: what went wrong, and the next step.
        created, started, ended: Unix time; None for what has not happened.
    """

    id: int
    verb: str
    subject: str
    arguments: Sequence[str]
    state: JobState
    model: str
    error: str
    hint: str
    created: float
    started: float | None
    ended: float | None

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")


class Jobs(Connection):
    """The tables of jobs and of pinned models."""

    def add_job(self, verb: str, subject: str, arguments: Sequence[str]) -> Job:
        """Queue a job."""
        row = self.insert(
            "jobs", verb=verb, subject=subject, arguments=json.dumps(list(arguments)), created=time.time()
        )
        return self.job(row)

    def job(self, job_id: int) -> Job:
        """The job with this id."""
        return self.row(f"job {job_id}", _job, "SELECT * FROM jobs WHERE id = ?", job_id)

    def jobs(self, limit: int) -> list[Job]:
        """The newest jobs, newest first."""
        return self.rows(_job, "SELECT * FROM jobs ORDER BY id DESC LIMIT ?", limit)

    def next_job(self) -> Job | None:
        """The job that has waited longest, which runs from now on; None where none waits."""
        with self.atomic():
            found = self.rows(_job, "SELECT * FROM jobs WHERE state = 'waiting' ORDER BY id LIMIT 1")
            if not found:
                return None
            self.execute(
                "UPDATE jobs SET state = 'running', started = ? WHERE id = ?", time.time(), found[0].id
            )
            return self.job(found[0].id)

    def end_job(
        self, job_id: int, state: JobState, *, model: str = "", error: str = "", hint: str = ""
    ) -> Job:
        """Record how an open job ended.

        Raises:
            ConflictError: it has ended before.
        """
        changed = self.execute(
            "UPDATE jobs SET state = ?, model = ?, error = ?, hint = ?, ended = ?"
            " WHERE id = ? AND state IN ('waiting', 'running')",
            *(state, model, error, hint, time.time(), job_id),
        )
        job = self.job(job_id)
        if not changed:
            raise ConflictError(f"job {job_id} has ended already")
        return job

    def cut_off_jobs(self) -> int:
        """End every open job as interrupted; how many there were. For the start of the service."""
        return self.execute(
            "UPDATE jobs SET state = 'interrupted', error = ?, ended = ?"
            " WHERE state IN ('waiting', 'running')",
            *(CUT_OFF, time.time()),
        )

    def forget_jobs(self, keep: int) -> list[int]:
        """Delete all but the newest `keep` jobs, none that is open; their ids."""
        with self.atomic():
            old = self.rows(
                _id,
                "SELECT id FROM jobs WHERE state NOT IN ('waiting', 'running')"
                " ORDER BY id DESC LIMIT -1 OFFSET ?",
                keep,
            )
            for job_id in old:
                self.execute("DELETE FROM jobs WHERE id = ?", job_id)
        return old

    def pins(self) -> set[str]:
        """Names of the models that stay in memory."""
        return set(self.rows(_model, "SELECT model FROM pins"))

    def pin(self, model: str) -> None:
        """Keep a model in memory once it is there."""
        self.execute("INSERT INTO pins (model) VALUES (?) ON CONFLICT DO NOTHING", model)

    def unpin(self, model: str) -> None:
        """Let a model leave memory again."""
        self.execute("DELETE FROM pins WHERE model = ?", model)


def _job(*, arguments: str, **row: Any) -> Job:
    return Job(arguments=tuple(json.loads(arguments)), **known(Job, row))


def _id(*, id: int) -> int:
    return id


def _model(*, model: str) -> str:
    return model
