"""llama.cpp's server, the real one: `python -m llama_cpp.server` with a random tiny model.

`just bench-setup` installs it. Where it is missing these tests are skipped.
"""

import asyncio
import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.domain import Delta, Message
from appliance.engine.messages import Wishes
from appliance.errors import EngineUnavailableError
from appliance.upstream.directory import Upstreams
from appliance.upstream.settings import Upstream
from tests.builder.import_.ggml import write_gguf
from tests.builder.import_.models import config_of, tensors_of

PYTHON = Path(__file__).parents[3] / ".venv-bench" / "bin" / "python"
HELLO = [Message(role="user", content="Hello")]
KEY = "sk-tests-only"

pytestmark = pytest.mark.anyio


class Llama:
    """A server that can be stopped and started again on its port."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._model, self._log = model, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to serve; returns once it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(
                        str(PYTHON),
                        "-m",
                        "llama_cpp.server",
                        "--model",
                        str(self._model),
                        "--model_alias",
                        "tiny",
                    ),
                    *("--host", "127.0.0.1", "--port", str(self.port), "--n_ctx", "512", "--n_threads", "1"),
                    *("--chat_format", "chatml", "--logits_all", "true", "--api_key", KEY),
                    *("--interrupt_requests", "false"),
                ],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self._process.poll() is None, self._log.read_text()
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=5)
            except urllib.error.HTTPError:
                return  # it wants the key
            except OSError:
                time.sleep(0.05)
        raise AssertionError(self._log.read_text())

    def stop(self) -> None:
        """Kill it."""
        if self._process:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """A running server."""
    installed = PYTHON.exists() and subprocess.run(
        [PYTHON, "-c", "import llama_cpp.server.app"], capture_output=True, check=False
    )
    if not installed or installed.returncode:
        pytest.skip("llama.cpp's server is not installed: `just bench-setup` does that")
    folder = tmp_path_factory.mktemp("llama")
    config = config_of("llama")
    server = Llama(write_gguf(folder / "tiny.gguf", "llama", config, tensors_of(config)), folder / "log")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The server's key."""
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o600)
    return file


@pytest.fixture
async def directory(llama: Llama, key_file: Path) -> AsyncIterator[Upstreams]:
    """The server as an upstream, after the first look."""
    found = Upstreams([Upstream.model_validate({"name": "gpu", "url": llama.url, "key_file": key_file})])
    found.start()
    async with asyncio.timeout(60):
        while not found.cards():  # noqa: ASYNC110 - it comes from a background task
            await asyncio.sleep(0.01)
    yield found
    await found.close()


async def ask(
    directory: Upstreams,
    wishes: Wishes | None = None,
    max_tokens: int | None = 8,
    stops: tuple[str, ...] = (),
    messages: list[Message] = HELLO,
) -> list[Delta]:
    """All deltas of an answer."""
    model = await directory.find("tiny@gpu")
    assert model
    async with (
        asyncio.timeout(120),
        contextlib.aclosing(model.answer(messages, wishes or {}, max_tokens, stops)) as deltas,
    ):
        return [delta async for delta in deltas]


async def test_streams_text_with_scores(directory: Upstreams) -> None:
    """The model is listed and answers in pieces; the same seed gives the same text; scores come through."""
    (card,) = directory.cards()
    assert (card.name, card.upstream) == ("tiny@gpu", "gpu")
    wishes: Wishes = {"temperature": 0.8, "seed": 7, "top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1}
    *pieces, last = await ask(directory, wishes)
    assert len(pieces) > 1
    assert last.finish == "length"
    assert last.timings
    assert "".join(piece.text for piece in pieces) == "".join(
        piece.text for piece in await ask(directory, wishes)
    )
    scores = [score for delta in await ask(directory, {"top_logprobs": 3}) for score in delta.logprobs]
    assert scores
    assert all(len(score.top) >= 1 and score.chosen.logprob <= 0 for score in scores)


async def test_stop_string(directory: Upstreams) -> None:
    """The text ends before a stop string."""
    whole = "".join(delta.text for delta in await ask(directory, {"temperature": 0}))
    stop = whole[len(whole) // 2 :][:2]
    cut = await ask(directory, {"temperature": 0}, stops=(stop,))
    assert "".join(delta.text for delta in cut) == whole[: whole.index(stop)]
    assert cut[-1].finish == "stop"


async def test_conversation_that_is_too_long_is_an_error(directory: Upstreams) -> None:
    """This server ends such an answer without a word; that is an error, and the next question is answered."""
    long = [Message(role="user", content="word " * 2000)]
    with pytest.raises(EngineUnavailableError, match=r"ended the stream|the connection broke"):
        await ask(directory, messages=long)
    assert await ask(directory)


async def test_wrong_key(llama: Llama, key_file: Path) -> None:
    """A key that the server does not take is named by its file, looked at or asked."""
    await asyncio.to_thread(key_file.write_text, "sk-wrong")
    directory = Upstreams([Upstream.model_validate({"name": "gpu", "url": llama.url, "key_file": key_file})])
    directory.start()
    with pytest.raises(EngineUnavailableError, match=f"refuses the key in {key_file}"):
        await ask(directory)
    (state,) = directory.states()
    assert "refuses the key" in state.problem
    await directory.close()


async def test_leaving_frees_the_server(directory: Upstreams) -> None:
    """The server answers one at a time: once the reader of a long answer has left, the next is answered."""
    model = await directory.find("tiny@gpu")
    assert model
    wishes: Wishes = {"temperature": 0, "logit_bias": {1023: -100.0}}
    async with contextlib.aclosing(model.answer(HELLO, wishes, 400, ())) as deltas:
        await anext(deltas)
    assert (await ask(directory))[-1].finish


async def test_restart(llama: Llama, directory: Upstreams) -> None:
    """A server that is killed in the middle of an answer ends it with an error; started again it answers."""
    model = await directory.find("tiny@gpu")
    assert model
    async with contextlib.aclosing(model.answer(HELLO, {"logit_bias": {1023: -100.0}}, 400, ())) as deltas:
        await anext(deltas)
        llama.stop()
        with pytest.raises(EngineUnavailableError, match="broke off"):
            async for _ in deltas:
                pass
    with pytest.raises(EngineUnavailableError, match="cannot be reached"):
        await ask(directory)
    await asyncio.to_thread(llama.start)
    assert await ask(directory)
