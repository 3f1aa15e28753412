"""The engine process at its socket: real processes, raw frames, clients that misbehave."""

import contextlib
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import msgspec
import pytest

from appliance.engine import wire
from appliance.engine.messages import (
    AskStats,
    Cancel,
    Failed,
    Finished,
    ModelRef,
    Reply,
    Request,
    Stats,
    Tokens,
)
from appliance.engine.worker import bind, plain
from tests.appliance.engine.conftest import TOY_COMMAND, generate
from tests.appliance.engine.toy import Toy


class Client:
    """A blocking client with no manners of its own."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(30)
        self.socket = connection
        self._stream = connection.makefile("rb")

    @classmethod
    def connect(cls, path: Path) -> Self:
        """To a socket file."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        return cls(connection)

    def send(self, *requests: Request) -> None:
        """Frames in one write."""
        self.socket.sendall(b"".join(map(wire.pack, requests)))

    def read(self) -> Reply | None:
        """The next reply, None at the end of the stream."""
        head = self._stream.read(4)
        return wire.parse_reply(self._stream.read(struct.unpack(">I", head)[0])) if head else None

    def until_end(self) -> list[Reply]:
        """Replies up to the end of one request."""
        replies = []
        while reply := self.read():
            replies.append(reply)
            if not isinstance(reply, Tokens):
                break
        return replies

    def stats(self) -> Stats:
        """What the engine does now, skipping replies to others."""
        self.send(AskStats(id="stats"))
        while not isinstance(reply := self.read(), Stats):
            assert reply
        return reply

    def close(self) -> None:
        """Vanish."""
        self._stream.close()
        self.socket.close()


def wait_for(happened: Callable[[], bool]) -> None:
    """Poll, for at most half a minute."""
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A toy engine on a socket file."""
    with subprocess.Popen(
        [*TOY_COMMAND, "--socket", str(path), "--threads", "1"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr
            assert "listening" in process.stderr.readline()
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A socket file to be, in a folder to be."""
    return tmp_path / "run" / "engine.sock"


@pytest.fixture
def process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A toy engine that ends cleanly after the test."""
    with listening(path) as process:
        yield process
        assert process.poll() is None, "the engine died"
        process.terminate()
        assert process.wait(30) == 0
        assert not path.exists()


@pytest.fixture
def connect(process: subprocess.Popen[str], path: Path) -> Iterator[Callable[[], Client]]:
    """Make clients of the engine."""
    with contextlib.ExitStack() as stack:

        def make() -> Client:
            client = Client.connect(path)
            stack.callback(client.close)
            return client

        yield make


def test_the_socket_is_this_users_alone(process: subprocess.Popen[str], path: Path) -> None:
    """Neither the file nor its folder is open to others."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_it_speaks_by_name(process: subprocess.Popen[str]) -> None:
    """Process lists show what it is."""
    assert Path(f"/proc/{process.pid}/comm").read_text() == "hob-engine\n"


def test_every_token_is_a_frame(connect: Callable[[], Client], toy: ModelRef) -> None:
    """Nothing is collected: each token leaves on its own, then the end."""
    client = connect()
    client.send(generate(toy, max_tokens=20))
    *tokens, end = client.until_end()
    assert [len(reply.tokens) for reply in tokens if isinstance(reply, Tokens)] == [1] * 20
    assert isinstance(end, Finished)


def test_two_clients_take_turns(connect: Callable[[], Client], toy: ModelRef) -> None:
    """They may use the same id; each gets its own replies."""
    one, two = connect(), connect()
    one.send(generate(toy, "same", max_tokens=300))
    two.send(generate(toy, "same", max_tokens=2))
    assert len(one.until_end()) == 301
    assert len(two.until_end()) == 3


def test_statistics_and_cancelling_do_not_wait(connect: Callable[[], Client], toy: ModelRef) -> None:
    """During an endless generation another client sees it, and its own client ends it."""
    one, two = connect(), connect()
    one.send(generate(toy, "a", max_tokens=10**6), generate(toy, "b", max_tokens=1))
    assert isinstance(one.read(), Tokens)
    stats = two.stats()
    assert (stats.model, stats.waiting, stats.running) == (toy.directory, 1, 1)
    assert stats.rss > 10 * 2**20
    one.send(Cancel(id="a"), Cancel(id="unheard of"))
    end = one.until_end()[-1]
    assert isinstance(end, Finished)
    assert (end.id, end.reason) == ("a", "cancelled")
    assert [reply.id for reply in one.until_end()] == ["b", "b"]


def test_a_client_that_vanishes_is_cancelled(connect: Callable[[], Client], toy: ModelRef) -> None:
    """Its running and its waiting requests go; the next client is served."""
    gone, other = connect(), connect()
    gone.send(generate(toy, "a", max_tokens=10**6), generate(toy, "b", max_tokens=10**6))
    assert isinstance(gone.read(), Tokens)
    gone.close()
    other.send(generate(toy, "c"))
    assert len(other.until_end()) == 9
    stats = other.stats()
    assert (stats.waiting, stats.running) == (0, 0)


def test_a_client_that_does_not_read_is_dropped(connect: Callable[[], Client], toy: ModelRef) -> None:
    """What waits for it is bounded; others are served."""
    deaf, other = connect(), connect()
    deaf.send(generate(toy, max_tokens=10**6, top_logprobs=64))
    assert isinstance(deaf.read(), Tokens)
    wait_for(lambda: other.stats().running == 0)
    with contextlib.suppress(ConnectionError):
        while deaf.read():
            pass


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack(">I", 2**31) + b"x" * 100,
        struct.pack(">I", 5) + b"hello",
        struct.pack(">I", 0),
        b"GET / HTTP/1.1\r\nHost: hob.local\r\n\r\n",
        wire.pack(AskStats(id="x"))[:-1],
        os.urandom(3),
    ],
    ids=["too long", "no message", "empty", "http", "cut off", "no length"],
)
def test_garbage_ends_its_connection_alone(
    connect: Callable[[], Client], toy: ModelRef, garbage: bytes
) -> None:
    """Its sender's requests are cancelled, its connection closed; others do not notice."""
    bad, good = connect(), connect()
    bad.send(generate(toy, max_tokens=10**6))
    assert isinstance(bad.read(), Tokens)
    good.send(generate(toy))
    bad.socket.sendall(garbage)
    bad.socket.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while bad.read():
            pass
    assert len(good.until_end()) == 9
    wait_for(lambda: good.stats().running == 0)


def test_a_message_of_an_unknown_type_fails(connect: Callable[[], Client], toy: ModelRef) -> None:
    """With its own id; the connection goes on."""
    client = connect()
    body = msgspec.msgpack.encode({"type": "sing", "id": "7"})
    client.socket.sendall(struct.pack(">I", len(body)) + body)
    failed = client.read()
    assert isinstance(failed, Failed)
    assert (failed.id, failed.code) == ("7", "invalid_value")
    client.send(generate(toy))
    assert len(client.until_end()) == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(path: Path, toy: ModelRef, number: signal.Signals) -> None:
    """In the middle of a generation: exit code 0, connections closed, no file left, nothing but its log."""
    with listening(path) as process:
        client = Client.connect(path)
        client.send(generate(toy, max_tokens=10**6))
        assert isinstance(client.read(), Tokens)
        process.send_signal(number)
        with contextlib.suppress(ConnectionError):
            while client.read():
                pass
        client.close()
        assert process.wait(30) == 0
        assert not path.exists()
        assert process.stderr
        assert [line for line in process.stderr if not line.startswith("engine: INFO")] == []


def test_a_step_that_never_ends(path: Path, toy: ModelRef) -> None:
    """The engine still answers about itself and takes cancellations; SIGTERM ends it, with exit code 1."""
    with listening(path) as process:
        client = Client.connect(path)
        client.send(generate(toy, "a", prompt=[Toy.wedged]))
        assert process.stderr
        while "wedged" not in process.stderr.readline():
            pass
        client.send(generate(toy, "b"), Cancel(id="b"))
        (end,) = client.until_end()
        assert isinstance(end, Finished)
        assert (end.id, end.reason) == ("b", "cancelled")
        stats = client.stats()
        assert (stats.waiting, stats.running) == (0, 1)
        process.terminate()
        assert process.wait(30) == 1
        client.close()


def test_a_dead_engines_socket_file_is_replaced(path: Path, toy: ModelRef) -> None:
    """A file left by a killed process does not keep the next one from starting."""
    with listening(path) as process:
        process.kill()
    assert path.exists()
    with listening(path):
        client = Client.connect(path)
        client.send(generate(toy))
        assert len(client.until_end()) == 9
        client.close()


def test_a_second_engine_on_one_socket_is_refused(process: subprocess.Popen[str], path: Path) -> None:
    """It says so and exits with 1; the first goes on (its fixture checks)."""
    second = subprocess.run(
        [*TOY_COMMAND, "--socket", str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert second.returncode == 1
    assert second.stderr == f"engine: ERROR: another engine listens on {path}\n"


def test_a_path_that_cannot_be_a_socket_is_named(tmp_path: Path) -> None:
    """A file in the way stays; a path too long for the kernel is an error with its name."""
    occupied = tmp_path / "notes.txt"
    occupied.write_text("keep me")
    with pytest.raises(OSError, match="not a socket"):
        bind(occupied)
    assert occupied.read_text() == "keep me"
    long = tmp_path / ("x" * 120)
    with pytest.raises(OSError, match=r"cannot listen on .*xxx"):
        bind(long)


def test_it_ends_with_its_only_client(toy: ModelRef) -> None:
    """A process with an inherited socket ends when the other end closes, even while it computes."""
    ours, theirs = socket.socketpair()
    with subprocess.Popen(
        [*TOY_COMMAND, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
    ) as process:
        theirs.close()
        client = Client(ours)
        client.send(generate(toy, max_tokens=10**6))
        assert isinstance(client.read(), Tokens)
        client.close()
        assert process.wait(30) == 0


def test_it_stays_lean() -> None:
    """The process imports neither the web stack nor a compiler."""
    code = "import sys, appliance.engine.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"pydantic", "starlette", "uvicorn", "tokenizers", "torch", "tvm", "tvm_ffi", "jinja2"}
    assert heavy.isdisjoint(loaded.stdout.split())


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Check failed: (lib_handle_ != nullptr) is false: Failed to load x.so", "Failed to load x.so"),
        ("\n  CUDA: out of memory\n  at line 3\n", "CUDA: out of memory"),
        ("", ""),
    ],
)
def test_errors_of_the_runtime(message: str, shown: str) -> None:
    """People are told what happened, not which condition in C++ found it."""
    assert plain(message) == shown
