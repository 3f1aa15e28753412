"""`hob model add` and its kin, as people and jobs run them."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.config import load_settings
from appliance.library import default
from appliance.models import Models
from appliance.shipped import GUIDE, GUIDE_DIRECTORY
from tests.appliance.library import hub
from tests.conftest import StartHob
from tests.service import GOLDEN, HOB, TINY, environment, run_hob

MLC = GOLDEN / "llama3rope" / "q4f16_1"
NO_COMPILE = "--no-compile"


@pytest.fixture
def server() -> Iterator[hub.Hub]:
    """A hub on this machine."""
    with hub.running() as running:
        yield running


def reaching(server: hub.Hub, folder: Path, **more: str) -> dict[str, str]:
    """What makes a command take this hub for the real one, without anybody's token."""
    return {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "", **more}


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The JSON objects on standard output."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def add(data_dir: Path, source: Path = MLC, *more: str) -> None:
    """Add a model without compiling it."""
    done = run_hob(data_dir, "model", "add", str(source), NO_COMPILE, *more)
    assert done.returncode == 0, done.stderr


def until(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it finds something."""
    end = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
    return found


def test_adding_says_what_it_does(tmp_path: Path) -> None:
    """Before: what it is, its licence, the room it takes and whether it fits. After: how to talk to it."""
    done = run_hob(tmp_path, "model", "add", str(MLC), "--name", "mine", NO_COMPILE)
    assert done.stdout == "ready: hob chat --model mine\n"
    for words in ("mine: mlc from", "licence not told", "of disk meanwhile", "It fits: it takes"):
        assert words in done.stderr
    assert len(run_hob(tmp_path, "model", "list", "--json").stdout) > 2


def test_adding_from_the_hub_as_a_program(tmp_path: Path, server: hub.Hub) -> None:
    """The plan comes first, then steps whose fractions never go back, last the model."""
    server.publish("someone/Small", GOLDEN / "llama3rope" / "hf")
    done = run_hob(
        tmp_path, "model", "add", "someone/Small", NO_COMPILE, "--json", **reaching(server, tmp_path)
    )
    told = lines(done)
    assert told[0]["plan"]["name"] == "Small-q4f16_1"
    assert told[0]["plan"]["licence"] == "apache-2.0"
    assert told[0]["plan"]["fit"]["verdict"] == "fits"
    fractions = [line["fraction"] for line in told[1:-1]]
    assert fractions == sorted(fractions)
    assert {"bytes", "total"} <= set(told[1])
    assert told[-1]["model"] == "Small-q4f16_1"
    assert done.returncode == 0
    shown = json.loads(run_hob(tmp_path, "model", "show", "Small-q4f16_1", "--json").stdout)
    assert shown["origin"]["source"] == "someone/Small"
    assert shown["licence"] == "apache-2.0"
    assert all(len(file["sha256"]) == 64 for file in shown["files"])


def test_a_dry_run_only_tells(tmp_path: Path, server: hub.Hub) -> None:
    """The plan is all; no weight is fetched and nothing is written."""
    server.publish("someone/Small", GOLDEN / "llama3rope" / "hf")
    done = run_hob(
        tmp_path, "model", "add", "someone/Small", "--dry-run", "--json", **reaching(server, tmp_path)
    )
    (told,) = lines(done)
    assert told["plan"]["fetch"] > 0
    assert server.asked("model.safetensors") == []
    assert not (tmp_path / "models").exists()


def test_a_secret_is_never_shown(tmp_path: Path, server: hub.Hub) -> None:
    """A token opens a gated repository from a file or the environment, and is in no output and no file."""
    server.publish("someone/Gated-q4f16_1", MLC)
    server.gated.add("someone/Gated-q4f16_1")
    (tmp_path / "token").write_text(f"{server.token}\n")
    arguments = ("model", "add", "someone/Gated-q4f16_1", NO_COMPILE, "--json", "--force")
    refused = run_hob(tmp_path, *arguments, **reaching(server, tmp_path, HOB_API_KEY="hob_private"))
    assert refused.returncode == 1
    assert "accepted its licence" in lines(refused)[-1]["error"]
    assert "hob_private" not in repr(server.requests)
    by_file = run_hob(
        tmp_path, *arguments, "--key-file", str(tmp_path / "token"), **reaching(server, tmp_path)
    )
    by_variable = run_hob(
        tmp_path, *arguments, "--name", "again", **reaching(server, tmp_path, HF_TOKEN=server.token)
    )
    for done in (by_file, by_variable):
        assert done.returncode == 0, done.stdout
        assert server.token not in done.stdout + done.stderr
    for file in (tmp_path / "models").rglob("*.json"):
        assert server.token not in file.read_text()


def test_sigterm_leaves_the_library_as_it_was(tmp_path: Path, server: hub.Hub) -> None:
    """A cancelled job says so in its last line, ends at once, and can go on later."""
    server.publish("someone/Small-q4f16_1", MLC)
    server.faults["params_shard_0.bin"] = ["stall"]
    command = [HOB, "model", "add", "someone/Small-q4f16_1", NO_COMPILE, "--json"]
    env = environment(tmp_path, **reaching(server, tmp_path))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        (half,) = until(lambda: list((tmp_path / "models").glob(".incoming/*/fetched/*shard_0.bin.part")))
        until(lambda: half.stat().st_size > 100_000)
        process.send_signal(signal.SIGTERM)
        rest, complaints = process.communicate(timeout=20)
    assert json.loads(rest.splitlines()[-1])["error"] == "stopped"
    assert process.returncode == 1
    assert "Traceback" not in complaints
    assert Models(load_settings(data_dir=tmp_path)).shelf.entries() == []
    done = run_hob(
        tmp_path, "model", "add", "someone/Small-q4f16_1", NO_COMPILE, **reaching(server, tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "range" in server.asked("params_shard_0.bin")[-1]


def test_verify_names_what_is_damaged(tmp_path: Path) -> None:
    """Exit code 1 and the file's name; adding again repairs it."""
    add(tmp_path, MLC, "--name", "mine")
    assert run_hob(tmp_path, "model", "verify").stdout == "mine is sound.\n"
    (file,) = (tmp_path / "models").glob("*/tokenizer.json")
    file.chmod(0o644)
    file.write_text("{}")
    done = run_hob(tmp_path, "model", "verify", "mine")
    assert done.returncode == 1
    assert "mine: tokenizer.json is damaged" in done.stderr
    as_json = run_hob(tmp_path, "model", "verify", "--json")
    assert lines(as_json)[-1]["code"] == "model_damaged"
    add(tmp_path, MLC, "--name", "mine")
    assert run_hob(tmp_path, "model", "verify").returncode == 0


def test_export_and_back(tmp_path: Path) -> None:
    """A model goes to a stick in one file and comes back on another Hob; the built-in one as well."""
    add(tmp_path / "one", MLC, "--name", "mine")
    stick = tmp_path / "stick"
    stick.mkdir()
    done = run_hob(tmp_path / "one", "model", "export", "mine", str(stick))
    assert "hob model add mine.hobmodel" in done.stdout
    add(tmp_path / "two", stick / "mine.hobmodel")
    assert run_hob(tmp_path / "two", "model", "verify", "mine").returncode == 0
    small = tmp_path / "small"
    small.mkdir()
    export = ('ulimit -f 200; exec "$@"', "sh", HOB, "model", "export", "mine", str(small))
    refused = subprocess.run(
        ["sh", "-c", *export], capture_output=True, text=True, env=environment(tmp_path / "one"), check=False
    )
    assert "too large for the disk's format" in refused.stderr  # as a file of 4 GiB is for FAT32
    assert list(small.iterdir()) == []
    again = run_hob(tmp_path / "one", "model", "export", "mine", str(stick))
    assert again.returncode == 1
    assert "already exists" in again.stderr
    if GUIDE_DIRECTORY.is_dir():
        run_hob(tmp_path / "one", "model", "export", GUIDE, str(stick), "--json")
        add(tmp_path / "two", stick / f"{GUIDE}.hobmodel", "--name", "guide-copy")


def test_remove_asks_and_knows_versions(tmp_path: Path) -> None:
    """Without an answer nothing goes; with one the version goes, and what the name means then is said."""
    add(tmp_path, MLC, "--name", "mine")
    other = Path(shutil.copytree(MLC, tmp_path / "other"))
    (other / "LICENSE").write_text("Free.")
    add(tmp_path, other, "--name", "mine")
    refused = run_hob(tmp_path, "model", "remove", "mine")
    assert refused.returncode == 1
    assert len(Models(load_settings(data_dir=tmp_path)).shelf.entries()) == 2
    done = run_hob(tmp_path, "model", "remove", "mine", "--yes")
    assert "mine is removed." in done.stdout
    assert "mine now means version" in done.stdout
    unknown = run_hob(tmp_path, "model", "remove", "nobody", "--yes")
    assert "'nobody' is not installed" in unknown.stderr
    builtin = run_hob(tmp_path, "model", "remove", GUIDE, "--yes")
    assert builtin.returncode == 1


def test_a_running_hob_and_its_library(start_hob: StartHob) -> None:
    """What is added answers at once. What is loaded stays, unless --force takes it away; Hob goes on then."""
    hob = start_hob(HOB_MODEL=TINY)
    added = run_hob(hob.data_dir, "model", "add", str(MLC), "--name", "added")
    assert added.stdout == "ready: hob chat --model added\n", added.stderr
    question = {"model": "added", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    status, answer = hob.post("/v1/chat/completions", question)
    assert (status, answer["model"]) == (200, "added")
    assert run_hob(hob.data_dir, "model", "remove", "added", "--yes").returncode == 1
    question["model"] = TINY
    assert hob.post("/v1/chat/completions", question)[0] == 200
    assert run_hob(hob.data_dir, "model", "remove", "added", "--yes").returncode == 0
    refused = run_hob(hob.data_dir, "model", "remove", TINY, "--yes")
    assert refused.returncode == 1
    assert f"{TINY} is in use" in refused.stderr
    assert run_hob(hob.data_dir, "model", "verify", TINY).returncode == 0
    done = run_hob(hob.data_dir, "model", "remove", TINY, "--yes", "--force")
    assert done.returncode == 0, done.stderr
    assert hob.get("/healthz")[0] == 200


def test_a_directory_copied_by_hand_is_adopted(tmp_path: Path) -> None:
    """`hob model add NAME` gives it a manifest where it is; from then on others can copy it."""
    shutil.copytree(MLC, tmp_path / "models" / "mine")
    before = json.loads(run_hob(tmp_path, "model", "show", "mine", "--json").stdout)
    assert before["version"] == ""
    add(tmp_path, Path("mine"))
    after = json.loads(run_hob(tmp_path, "model", "show", "mine", "--json").stdout)
    assert after["path"] == str(tmp_path / "models" / "mine")
    assert after["version"]


def test_the_default_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice outlasts the process, gives way to a setting, and ends with its model."""
    add(tmp_path, MLC, "--name", "mine")
    assert run_hob(tmp_path, "model", "default").stdout == f"{GUIDE}\n"
    assert run_hob(tmp_path, "model", "default", "mine").stdout == "mine\n"
    assert Models(load_settings(data_dir=tmp_path)).default == "mine"
    assert Models(load_settings(data_dir=tmp_path, model="other")).default == "other"
    monkeypatch.setenv("HOB_MODEL", "third")
    assert Models(load_settings(data_dir=tmp_path)).default == "third"
    monkeypatch.delenv("HOB_MODEL")
    unknown = run_hob(tmp_path, "model", "default", "nobody")
    assert unknown.returncode == 1
    assert run_hob(tmp_path, "model", "remove", "mine", "--yes").returncode == 0
    assert Models(load_settings(data_dir=tmp_path)).default == GUIDE


def test_a_default_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """A damaged file leaves the choice to the settings."""
    (tmp_path / default.FILE).write_bytes(b"\xff\xfe")
    assert default.read(tmp_path) == ""
    (tmp_path / default.FILE).unlink()
    (tmp_path / default.FILE).mkdir()
    assert default.read(tmp_path) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "/nowhere"), "no file or folder"),
        (("add", "~nobody-of-that-name/model"), "no file or folder"),
        (("add", "hf:x"), "not a Hugging Face id"),
        (("add", "x/y", "--key-file", "/nowhere"), "--key-file"),
        (("add", str(MLC), "--name", "../x"), "cannot be a model's name"),
        (("add", str(MLC), "--name", GUIDE), "built-in"),
        (("show", "nobody"), "'nobody' is not installed"),
        (("verify", "nobody"), "'nobody' is not installed"),
        (("export", "nobody", "x.hobmodel"), "'nobody' is not installed"),
        (("copy", "tiny", "--from", "127.0.0.1:9"), "127.0.0.1"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """One line and a hint for people; one JSON line with code for programs. The library stays empty."""
    done = run_hob(tmp_path, "model", *arguments)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("hob: ")]
    assert len(said) == 1, done.stderr
    assert message in said[0]
    if arguments[0] != "show":
        told = lines(run_hob(tmp_path, "model", *arguments, "--json"))[-1]
        assert message in told["error"]
        assert told["code"]
    assert Models(load_settings(data_dir=tmp_path)).shelf.entries() == []
