"""The administration's two sides over a real Unix socket."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.admin import client, messages, wire
from appliance.admin.messages import (
    DescribeDevice,
    Done,
    Failed,
    Final,
    PowerOff,
    Progress,
    Reboot,
    Request,
    SetHostName,
)
from appliance.admin.server import Handler, Server, Tell, allowed_uids, peer_uid
from appliance.errors import AdminError, ConflictError

pytestmark = pytest.mark.anyio

ME = os.getuid()


@contextlib.asynccontextmanager
async def serving(
    path: Path,
    handlers: dict[type, Handler],
    allowed: set[int] | None = None,
    idle: float = 60,
    questions: tuple[type, ...] = (),
) -> AsyncIterator[asyncio.Task[None]]:
    """A server on a socket at `path`, which the client finds."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = Server(handlers, {ME} if allowed is None else allowed, idle, questions)
    task = asyncio.create_task(server.run(listener))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the socket is to be."""
    path = tmp_path / "admin.sock"
    monkeypatch.setenv("HOB_ADMIN_SOCKET", str(path))
    return path


async def restart(request: Request, tell: Tell) -> Final:
    """A handler that tells how it goes and says what it was asked."""
    tell(Progress(text="Half way.", fraction=0.5))
    return Done(text=type(request).__name__)


async def busy(request: Request, tell: Tell) -> Final:
    """A handler that refuses."""
    raise ConflictError("An update is being installed.", hint="Wait for its end.")


async def broken(request: Request, tell: Tell) -> Final:
    """A handler with a mistake in it."""
    raise ZeroDivisionError("of all things")


async def raw(path: Path, line: bytes) -> messages.Reply:
    """What the server answers to any bytes."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    reply = wire.parse_reply(await wire.read_line(reader))
    with contextlib.suppress(ConnectionResetError):  # where the server did not read all of a long line
        assert await reader.read() == b""  # one reply, then the end
    writer.close()
    await writer.wait_closed()
    return reply


async def test_a_request_is_done_and_tells_how_it_goes(path: Path) -> None:
    """Progress comes before the reply, and the reply is the handler's."""
    heard: list[Progress] = []
    async with serving(path, {Reboot: restart}):
        assert await client.ask(Reboot(), Done, heard.append) == Done(text="Reboot")
    assert heard == [Progress(text="Half way.", fraction=0.5)]


async def test_a_refusal_comes_back_as_the_error_it_was(path: Path) -> None:
    """The client raises the handler's error, with code, message and hint."""
    async with serving(path, {Reboot: busy}):
        with pytest.raises(ConflictError) as caught:
            await client.ask(Reboot(), Done)
    assert (caught.value.message, caught.value.hint) == ("An update is being installed.", "Wait for its end.")


async def test_a_question_does_not_wait_for_work(path: Path) -> None:
    """What changes something goes one after the other; what only asks is answered meanwhile."""
    begun, release = asyncio.Event(), asyncio.Event()
    order: list[Request] = []

    async def work(request: Request, tell: Tell) -> Final:
        order.append(request)
        begun.set()
        await release.wait()
        return Done(text="done")

    handlers: dict[type, Handler] = {Reboot: work, PowerOff: work, DescribeDevice: restart}
    async with serving(path, handlers, questions=(DescribeDevice,)):
        first = asyncio.create_task(client.ask(Reboot(), Done))
        await begun.wait()
        second = asyncio.create_task(client.ask(PowerOff(), Done))
        assert await client.ask(DescribeDevice(), Done) == Done(text="DescribeDevice")
        assert order == [Reboot()]
        release.set()
        await asyncio.gather(first, second)
    assert order == [Reboot(), PowerOff()]


async def test_a_mistake_in_a_handler_reaches_the_peer_and_ends_nothing(path: Path) -> None:
    """The peer hears of it, and the next request is served."""
    async with serving(path, {Reboot: broken, DescribeDevice: restart}):
        with pytest.raises(AdminError, match="ZeroDivisionError"):
            await client.ask(Reboot(), Done)
        assert await client.ask(DescribeDevice(), Done)


async def test_what_this_device_cannot_do_is_said(path: Path) -> None:
    """A message without a handler is refused, not left waiting."""
    async with serving(path, {}):
        reply = await raw(path, wire.pack(Reboot()))
    assert isinstance(reply, Failed)
    assert reply.code == "not_found"


async def test_other_users_are_refused(path: Path) -> None:
    """Who asks is what the kernel says of the peer, not what the message says."""
    async with serving(path, {Reboot: restart}, allowed={ME + 1}):
        reply = await raw(path, wire.pack(Reboot()))
    assert isinstance(reply, Failed)
    assert reply.code == "forbidden"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"reboot\n", "malformed"),
        (b"[]\n", "object"),
        (b'{"type":"run","command":"id"}\n', "run"),
        (b'{"type":"reboot","force":true}\n', "force"),
        (b'{"type":"set-host-name"}\n', "name"),
        (b'{"type":"set-host-name","name":"a b; reboot"}\n', "name"),
        (b'{"type":"set-host-name","name":"-hob"}\n', "name"),
        (b'{"type":"set-wifi","ssid":"","password":""}\n', "ssid"),
        (b'{"type":"set-wifi","ssid":"home","country":"Germany"}\n', "country"),
        (b'{"type":"set-clock","seconds":-1}\n', "seconds"),
        (b"\xff\xfe\n", ""),
        (b"x" * (wire.MAX_LINE + 1), "longer than"),
    ],
)
async def test_what_is_no_request_is_refused(path: Path, line: bytes, named: str) -> None:
    """Unknown messages, unknown or wrong fields and noise are refused with a reason that names them."""
    async with serving(path, {Reboot: restart, SetHostName: restart}):
        reply = await raw(path, line)
    assert isinstance(reply, Failed)
    assert reply.code == "invalid_value"
    assert named in reply.message


async def test_a_peer_that_leaves_halfway_ends_nothing(path: Path) -> None:
    """Half a message and a closed connection: the server serves on."""
    async with serving(path, {Reboot: restart}):
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"type":')
        writer.close()
        await writer.wait_closed()
        assert await client.ask(Reboot(), Done)


async def test_requests_go_one_after_the_other(path: Path) -> None:
    """Two at once do not meet: what one changes the other does not see half done."""
    inside = 0
    most = 0

    async def slow(request: Request, tell: Tell) -> Final:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for _ in range(10):
            await asyncio.sleep(0)
        inside -= 1
        return Done()

    async with serving(path, {Reboot: slow}):
        await asyncio.gather(*(client.ask(Reboot(), Done) for _ in range(5)))
    assert most == 1


async def test_it_ends_when_there_is_nothing_to_do(path: Path) -> None:
    """An idle device carries no administration: the process ends, after the last request."""
    async with serving(path, {Reboot: restart}, idle=0.05) as task:
        await client.ask(Reboot(), Done)
        await asyncio.wait_for(task, 20)
        assert client.present()  # systemd listens on, and starts the next one


async def test_without_a_socket_it_is_not_a_device(path: Path) -> None:
    """On somebody's computer the error says so, with a code that pages know."""
    assert not client.present()
    with pytest.raises(AdminError) as caught:
        await client.ask(Reboot(), Done)
    assert caught.value.code == "not_a_device"


async def test_a_server_that_dies_is_an_error(path: Path) -> None:
    """A connection that ends without a reply does not leave the client waiting."""

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async with await asyncio.start_unix_server(die, path):
        with pytest.raises(AdminError, match="no answer"):
            await client.ask(Reboot(), Done)


def test_the_peer_is_who_the_kernel_says() -> None:
    """Both ends of a pair of sockets are this very process's."""
    left, right = socket.socketpair()
    with left, right:
        assert peer_uid(left) == ME


def test_root_is_allowed_and_users_that_do_not_exist_are_none() -> None:
    """A missing user opens nothing."""
    assert allowed_uids(["no-such-user-here"]) == {0}
