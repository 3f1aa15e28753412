"""The engine process: `python -m appliance.engine.worker`.

It speaks `messages` in `wire` frames, with one client over an inherited socket (`--fd`) or with any number
over a socket file (`--socket`), which systemd may have made (`--passed`). The main thread only moves
messages, so that cancelling and statistics are handled at any time; a `Runner` computes on a second thread.
"""

import argparse
import asyncio
import collections
import contextlib
import ctypes
import functools
import itertools
import logging
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from appliance import systemd
from appliance.engine import wire
from appliance.engine.messages import (
    AskStats,
    Cancel,
    Failed,
    Generate,
    Load,
    ModelRef,
    Reply,
    Request,
    Stats,
)
from appliance.engine.runner import Activity, Loader, Model, Runner, resident_bytes
from appliance.engine.selftest import check_one_token
from appliance.errors import DeviceError, HobError, InvalidRequestError
from builder.errors import BuildError

log = logging.getLogger(__name__)

# A client that stops reading is dropped once so many bytes wait for it: some hundred thousand tokens, so
# that one that is merely late, on a busy machine, is not meant.
MAX_BACKLOG = 2**24

# Seconds that the step in progress gets to end when the process is to stop; a prefill chunk takes about one.
STOP_TIMEOUT = 5.0


class Runs(Protocol):
    """What computes: `runner.Runner`, or `mlc.MLCRunner`. No method blocks but `stop`."""

    def start(self) -> None:
        """Begin to work."""

    def stop(self, timeout: float) -> bool:
        """End without answering open requests; whether that was possible in time."""

    def submit(self, client: int, request: Generate | Load) -> None:
        """Queue a request."""

    def cancel(self, client: int, request_id: str) -> None:
        """End a request within one token."""

    def forget(self, client: int) -> None:
        """End all requests of a client that has gone."""

    def activity(self) -> Activity:
        """What is being done."""


MakeRunner = Callable[[Callable[[int, Reply], None]], Runs]
"""Makes what computes, given whom to tell replies: the client's number and the reply, on any thread."""


class Server:
    """Connections on one side, the runner on the other."""

    def __init__(self, make_runner: MakeRunner) -> None:
        self._loop = asyncio.get_running_loop()
        self._runner = make_runner(self._reply)
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._talks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._outbox: collections.deque[tuple[int, Reply]] = collections.deque()
        self._waking = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute for as long as the context lasts, then end every connection."""
        self._runner.start()
        try:
            yield
        finally:
            for writer in self._writers.values():
                writer.transport.abort()
            if self._talks:
                await asyncio.wait(self._talks)
            if not self._runner.stop(STOP_TIMEOUT):
                log.error("a step does not end; leaving without it")
                os._exit(1)  # an orderly exit would tear the runtime down under the running step

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it goes away or sends what is not a message; then cancel its requests."""
        client, task = next(self._numbers), asyncio.current_task()
        assert task
        self._talks.add(task)
        self._writers[client] = writer
        try:
            while (body := await wire.read_frame(reader)) is not None:
                try:
                    self._handle(client, wire.parse_request(body))
                except wire.WireError as error:
                    if error.id is None:
                        raise
                    self._send(client, Failed(id=error.id, code=InvalidRequestError.code, message=str(error)))
        except wire.WireError as error:
            log.warning("connection %d is closed: %s", client, error)
        except ConnectionError as error:
            log.info("connection %d is gone: %s", client, error)
        finally:
            self._talks.remove(task)
            del self._writers[client]
            self._runner.forget(client)
            writer.transport.abort()

    def _handle(self, client: int, request: Request) -> None:
        """Hand on one request."""
        match request:
            case Load() | Generate():
                self._runner.submit(client, request)
            case Cancel():
                self._runner.cancel(client, request.id)
            case AskStats():
                self._send(client, self._stats(request.id))

    def _stats(self, request_id: str) -> Stats:
        """The state of this process."""
        activity = self._runner.activity()
        return Stats(
            id=request_id,
            model=activity.model.directory if activity.model else "",
            waiting=activity.waiting,
            running=activity.running,
            rss=resident_bytes(),
            idle=activity.idle,
        )

    def _reply(self, client: int, reply: Reply) -> None:
        """Send from any thread; replies keep their order.

        The loop is woken once for all that wait: a wake-up each could fill its pipe, and signals go through
        the same pipe.
        """
        self._outbox.append((client, reply))
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        """Send what waits. What is added meanwhile sees the flag down and wakes the loop again."""
        self._waking = False
        for _ in range(len(self._outbox)):
            self._send(*self._outbox.popleft())

    def _send(self, client: int, reply: Reply) -> None:
        """Write at once; a reply to a client that has gone is dropped."""
        writer = self._writers.get(client)
        if writer is None or writer.is_closing():
            return
        writer.write(wire.pack(reply))
        if writer.transport.get_write_buffer_size() > MAX_BACKLOG:
            log.warning("connection %d is closed: it does not read", client)
            writer.transport.abort()


def bind(path: Path) -> socket.socket:
    """A socket bound to `path` that only this user can reach; takes the place of a dead engine's file.

    Raises:
        OSError: the file cannot be made, or another engine listens there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(f"{path} is in the way: it is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise FileExistsError(f"another engine listens on {path}")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {path}: {error}") from error
    finally:
        os.umask(before)
    return listener


async def run(
    make_runner: MakeRunner, *, fd: int | None = None, path: Path | None = None, passed: bool = False
) -> None:
    """Serve until SIGTERM or SIGINT, or until the client of `fd` goes away.

    Raises:
        OSError: there is nothing to listen on.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(make_runner)
    async with server.running(), contextlib.AsyncExitStack() as stack:
        if fd is not None:
            # Its other end closes when the service ends, however it ends: no engine is ever left behind.
            streams = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd))
            talk = asyncio.create_task(server.talk(*streams))
            talk.add_done_callback(lambda _: stop.set())
        if path is not None:
            listener = await asyncio.start_unix_server(server.talk, sock=bind(path))
            stack.callback(path.unlink, missing_ok=True)
            stack.callback(listener.close)
            log.info("listening on %s", path)
        if passed:
            ours = systemd.listener()
            if ours is None:
                raise OSError("systemd has passed no socket to this process")
            # Not `start_unix_server`: from Python 3.13 on it would remove the file, which is systemd's.
            stack.callback((await asyncio.start_server(server.talk, sock=ours)).close)
            stack.callback(systemd.notify, stopping=True)
            await stack.enter_async_context(systemd.watched())
            systemd.notify(ready=True)
        await stop.wait()


def load_native(model: ModelRef, *, threads: int) -> Model:
    """Load a compiled model and test it with one token; the first one brings the runtime in.

    Raises:
        DeviceError: the device it was compiled for is not there, cannot run it, or computes wrongly.
        ModelLoadError: as `NativeModel.load`, on the processor.
    """
    from appliance.engine.native import NativeModel

    try:
        loaded = NativeModel.load(
            Path(model.directory),
            Path(model.library),
            context=model.context,
            max_sequences=1,
            threads=threads,
        )
    except Exception as error:
        if model.target == "cpu":
            raise
        # Whatever it is, and drivers raise anything: what is the model's own fault the processor finds too.
        hint = error.hint if isinstance(error, (HobError, BuildError)) else ""
        raise DeviceError(plain(str(error)) or type(error).__name__, hint=hint) from error
    try:
        check_one_token(loaded)
    except Exception:
        loaded.close()
        raise
    return loaded


def plain(message: str) -> str:
    """The first line of an error of TVM's, without the condition in C++ that it begins with."""
    first = next((line.strip() for line in message.splitlines() if line.strip()), "")
    return re.sub(r"^Check failed: .*? is false: ", "", first)


def keep_freed_memory() -> None:
    """Let glibc reuse the arrays of one token for the next one instead of returning them to the kernel.

    Sampling from a vocabulary of 128k with top_p takes 0.5 ms so, 1.3 ms with the page faults otherwise.
    Weights are larger than the bound, so that closing a model still returns them.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 16 * 2**20)
        mallopt(mmap_threshold, 4 * 2**20)


def main(
    arguments: Sequence[str] | None = None,
    *,
    load: Loader | None = None,
    make_runner: MakeRunner | None = None,
) -> None:
    """Run the process. `load` replaces how models are loaded, `make_runner` the whole native engine."""
    parser = argparse.ArgumentParser(prog="appliance.engine.worker", description="Hob's engine process.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="inherited connected socket of the only client")
    where.add_argument("--socket", type=Path, help="socket file to make and listen on")
    where.add_argument("--passed", action="store_true", help="listen on the socket that systemd passes")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    chosen = parser.parse_args(arguments)

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="engine: %(levelname)s: %(message)s")
    threads = chosen.threads or psutil.cpu_count(logical=False) or 1
    os.environ["TVM_NUM_THREADS"] = str(threads)  # read once, when the runtime starts its pool
    with contextlib.suppress(OSError):  # the name that top and ps show, where there is procfs
        Path("/proc/self/comm").write_text("hob-engine")
    keep_freed_memory()
    make_runner = make_runner or functools.partial(
        Runner, load or functools.partial(load_native, threads=threads)
    )
    try:
        asyncio.run(run(make_runner, fd=chosen.fd, path=chosen.socket, passed=chosen.passed))
    except OSError as error:
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
