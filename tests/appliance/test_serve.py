"""`hob serve` as a process: start, stop, restart, power cut, crash of the engine."""

import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from appliance.store import INTERRUPTED, Store, StoredMessage
from tests.conftest import StartHob
from tests.service import ENDLESS, HOB, MODEL, TINY, Hob, environment, run_hob, start


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition that will come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def ask(hob: Hob, text: str, model: str = TINY) -> int:
    """Ask in a new chat, as a browser without JavaScript does; the chat's id."""
    connection = http.client.HTTPConnection("127.0.0.1", hob.port, timeout=30)
    form = urllib.parse.urlencode({"text": text, "model": model})
    connection.request("POST", "/chats", form, {"content-type": "application/x-www-form-urlencoded"})
    response = connection.getresponse()
    assert response.status == 303, response.read()
    location = response.getheader("location")
    assert location is not None
    connection.close()
    return int(location.removeprefix("/chats/").partition("#")[0])


def answer_in(data_dir: Path, chat_id: int) -> StoredMessage:
    """The answer to a chat's only question, as the database has it."""
    store = Store(data_dir / "hob.db")
    try:
        question, answer = store.thread(chat_id)
    finally:
        store.close()
    assert question.role == "user"
    return answer


def test_health_says_what_is_loaded(server: Hob) -> None:
    """A service that is ready answers 200 with the model's name."""
    status, health = server.get("/healthz")
    assert status == 200
    assert (health["status"], health["model"]) == ("ok", MODEL)


def test_address_is_printed_with_a_qr_code(server: Hob) -> None:
    """Standard output has the address as text and as a QR code."""
    printed = server.out.read_text()
    assert f"Hob is at {server.url}\n" in printed
    assert "▄" in printed


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stops_cleanly_with_open_streams(start_hob: StartHob, how: signal.Signals) -> None:
    """Asked to stop, Hob ends running answers and open streams, keeps the text and exits with 0."""
    hob = start_hob(HOB_MODEL=TINY, HOB_CONTEXT=str(ENDLESS))
    engine = hob.engine_pid()
    chat = ask(hob, "Tell me everything")
    client = openai.OpenAI(base_url=f"{hob.url}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model=TINY, messages=[{"role": "user", "content": "Hello"}], stream=True
    )
    next(iter(stream))
    until(lambda: answer_in(hob.data_dir, chat).content != "")
    assert hob.stop(how) == 0
    with pytest.raises(openai.APIError, match="engine"):
        list(stream)
    answer = answer_in(hob.data_dir, chat)
    assert (answer.state, answer.error) == ("stopped", INTERRUPTED)
    assert answer.content
    until(lambda: not Path(f"/proc/{engine}").exists())


def test_conversation_survives_a_restart(start_hob: StartHob) -> None:
    """A chat is there again after a stop and a start, in the pages too."""
    first = start_hob(HOB_CONTEXT="256")
    chat = ask(first, "What is a hob?")
    until(lambda: answer_in(first.data_dir, chat).state == "done", 120)
    before = answer_in(first.data_dir, chat)
    assert before.content
    assert before.completion_tokens is not None
    assert before.timings is not None
    first.stop()
    second = start_hob(HOB_CONTEXT="256")
    assert answer_in(second.data_dir, chat) == before
    connection = http.client.HTTPConnection("127.0.0.1", second.port, timeout=30)
    connection.request("GET", f"/chats/{chat}")
    page = connection.getresponse()
    assert page.status == 200
    assert "What is a hob?" in page.read().decode()
    connection.close()


def test_power_cut_keeps_the_text(start_hob: StartHob) -> None:
    """After a power cut in the middle of an answer, its text is there, marked as interrupted."""
    hob = start_hob(HOB_MODEL=TINY, HOB_CONTEXT=str(ENDLESS))
    chat = ask(hob, "Tell me everything")
    until(lambda: answer_in(hob.data_dir, chat).content != "")
    seen = answer_in(hob.data_dir, chat)
    assert seen.state == "running"
    hob.kill()
    again = start_hob()
    answer = answer_in(again.data_dir, chat)
    assert answer.content.startswith(seen.content)
    assert (answer.state, answer.error, answer.finish) == ("stopped", INTERRUPTED, "cancelled")


def test_engine_death_ends_streams_and_heals(start_hob: StartHob) -> None:
    """When the engine dies, open streams end with an error, and the next request works."""
    hob = start_hob(HOB_MODEL=TINY, HOB_CONTEXT=str(ENDLESS))
    chat = ask(hob, "Tell me everything")
    client = openai.OpenAI(base_url=f"{hob.url}/v1", api_key="none", max_retries=0, timeout=60)
    hello: openai.types.chat.ChatCompletionUserMessageParam = {"role": "user", "content": "Hello"}
    stream = client.chat.completions.create(model=TINY, messages=[hello], stream=True)
    next(iter(stream))
    until(lambda: answer_in(hob.data_dir, chat).content != "")
    os.kill(hob.engine_pid(), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="engine"):
        list(stream)
    until(lambda: answer_in(hob.data_dir, chat).state == "error")
    answer = answer_in(hob.data_dir, chat)
    assert answer.content
    assert "engine" in answer.error
    again = client.chat.completions.create(model=TINY, messages=[hello], max_tokens=3)
    assert again.choices[0].message.content
    until(lambda: hob.get("/healthz")[0] == 200)


def test_engine_that_hangs_shows_in_health(start_hob: StartHob) -> None:
    """/healthz notices an engine that lives but does nothing, and that it has come back."""
    hob = start_hob(HOB_MODEL=TINY)
    os.kill(hob.engine_pid(), signal.SIGSTOP)
    status, health = hob.get("/healthz")
    assert (status, health["status"]) == (503, "failed")
    os.kill(hob.engine_pid(), signal.SIGCONT)
    until(lambda: hob.get("/healthz")[0] == 200)


def test_missing_model_keeps_the_service_up(start_hob: StartHob) -> None:
    """Without its model Hob still serves pages; /healthz and the console say what is wrong."""
    hob = start_hob(ready=False, HOB_MODEL="nobody")
    status, health = hob.get("/healthz")
    assert status == 503
    assert health["status"] == "failed"
    assert "'nobody' is not installed" in health["reason"]
    assert "'nobody' is not installed" in hob.log.read_text()
    assert hob.get("/v1/models")[0] == 200


def test_damaged_model_is_named(start_hob: StartHob, data_dir: Path) -> None:
    """A shard that was cut short: the service is up, the error names the file."""
    (shard,) = (data_dir / "models" / TINY).glob("params_shard_*.bin")
    shard.write_bytes(shard.read_bytes()[:-1])
    hob = start_hob(ready=False, HOB_MODEL=TINY)
    status, health = hob.get("/healthz")
    assert status == 503
    assert shard.name in health["reason"]
    request = {"model": TINY, "messages": [{"role": "user", "content": "Hello"}]}
    status, body = hob.post("/v1/chat/completions", request)
    assert status == 503
    assert shard.name in body["error"]["message"]


def test_busy_port_is_one_line(data_dir: Path) -> None:
    """A port in use gives one line with a hint and exit code 1, before anything is compiled."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_hob(data_dir, "serve", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"hob: port {port} is in use"
    assert len(done.stderr.splitlines()) == 2


def test_foreign_address_is_one_line(data_dir: Path) -> None:
    """An address that is not this machine's cannot be listened on; the error names it."""
    done = run_hob(data_dir, "serve", "--host", "192.0.2.1")
    assert done.returncode == 1
    assert done.stderr.startswith("hob: cannot listen on '192.0.2.1'")


def test_two_services_never_share_a_data_folder(server: Hob) -> None:
    """A second Hob on the same folder is refused: it would end the first one's answers."""
    done = run_hob(server.data_dir, "serve", "--port", "0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"hob: another Hob is running on {server.data_dir}")


def test_damaged_database_is_one_line(data_dir: Path) -> None:
    """A database that is none gives one line with the file's name."""
    (data_dir / "hob.db").write_bytes(b"not a database at all" * 1000)
    done = run_hob(data_dir, "serve", "--port", "0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"hob: {data_dir / 'hob.db'}: file is not a database")


def test_lan_prints_a_setup_code(start_hob: StartHob) -> None:
    """On the LAN a Hob without owner prints the code that guards the first visit; never on loopback."""
    hob = start_hob("--lan", ready=False)
    assert "with this code: " in hob.out.read_text()


def test_a_code_is_printed_wherever_the_network_reaches(start_hob: StartHob) -> None:
    """An address of the network given by hand is guarded like --lan."""
    said = start_hob("--host", "0.0.0.0", ready=False).out.read_text()  # noqa: S104 - that is what is tested
    assert "with this code: " in said
    assert "Only this machine" not in said


@pytest.mark.slow
def test_first_start_compiles_the_model(tmp_path: Path, libraries: Path) -> None:
    """On a machine that has never seen it, Hob compiles its model, says so, and answers; once."""
    (tmp_path / "models").symlink_to(libraries.parent / "models")
    for start_number in (1, 2):
        hob = start(tmp_path, HOB_MODEL=TINY)
        request = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        assert hob.post("/v1/chat/completions", request)[0] == 200
        assert hob.stop() == 0
        assert (f"Compiling {TINY} for this machine" in hob.log.read_text()) == (start_number == 1)


def test_interrupt_while_compiling(tmp_path: Path, libraries: Path) -> None:
    """Ctrl-C during the first compilation ends Hob and the compiler, with no traceback."""
    (tmp_path / "models").symlink_to(libraries.parent / "models")
    process = subprocess.Popen(
        [HOB, "serve", "--port", "0", "--model", TINY],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith(f"Compiling {TINY}")
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in complaints
    assert not list((tmp_path / "libraries").glob("*.so"))
