"""`hob doctor` finds what is wrong and says what to do."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import doctor
from appliance.config import load_settings
from appliance.doctor import compute
from appliance.domain import Gpu
from appliance.hardware.describe import describe, detect
from appliance.hardware.devices import candidates
from appliance.hardware.memory import Memory
from tests.appliance.hardware.machines import recording, room
from tests.conftest import StartHob
from tests.service import GOLDEN


def test_report_of_this_machine(tmp_path: Path) -> None:
    """The command describes this machine and the built-in model as JSON, and is content with them."""
    result = subprocess.run(
        ["hob", "doctor", "--json"],
        env={"HOB_DATA_DIR": str(tmp_path), "HOB_PORT": "0", "PATH": _path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["hardware"]["cores"] >= 1
    assert report["target"]
    assert {model["name"]: model["fits"] for model in report["models"]}["hob-guide"] is True
    assert all(finding["status"] != "problem" for finding in report["findings"])


def test_a_damaged_model_does_not_end_the_examination(tmp_path: Path) -> None:
    """A broken directory among the models is one finding; the rest of the report is there all the same."""
    broken = tmp_path / "models" / "broken"
    broken.mkdir(parents=True)
    (broken / "mlc-chat-config.json").write_text("{")
    result = subprocess.run(
        ["hob", "doctor", "--json"],
        env={"HOB_DATA_DIR": str(tmp_path), "HOB_PORT": "0", "PATH": _path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    findings = {finding["check"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert findings["model broken"]["status"] == "problem"
    assert findings["model hob-guide"]["status"] == "ok"


def test_text_for_people(tmp_path: Path) -> None:
    """Without --json the same is printed for people, with a mark before each check."""
    result = subprocess.run(
        ["hob", "doctor"],
        env={"HOB_DATA_DIR": str(tmp_path), "HOB_PORT": "0", "PATH": _path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Compiles for" in result.stdout
    assert "Computes on" in result.stdout
    assert "not measured yet" in result.stdout
    assert "engine runtime" in result.stdout


@pytest.mark.parametrize(
    ("available", "total", "verdict", "hint"),
    [
        (2**33, 2**33, "fits", ""),
        (2**20, 2**33, "not now", "Close other programs, or choose a smaller model or context."),
        (2**20, 2**21, "never", "Choose a smaller model or context."),
    ],
)
def test_which_models_fit(tmp_path: Path, available: int, total: int, verdict: str, hint: str) -> None:
    """A model is weighed against what is free, and against what there is at all."""
    settings = load_settings(data_dir=tmp_path)
    fit = doctor.model_fit("tiny", GOLDEN / "llama3rope" / "q4f16_1", settings, Memory(total, available))
    assert (fit.verdict, fit.fits) == (verdict, verdict == "fits")
    (finding,) = doctor.models_found((fit,))
    assert finding.hint == hint


def test_a_container_s_memory_is_named_as_such() -> None:
    """A bound that is not the machine's is said to be one."""
    assert "container" in doctor.memory(Memory(2**31, 2**30, limited=True)).detail
    assert "container" not in doctor.memory(Memory(2**31, 2**30)).detail
    assert doctor.memory(Memory(2**31, 2**20)).status == "problem"


@pytest.mark.skipif(bool(detect().gpus), reason="this machine has a GPU")
def test_devices_of_a_jetson() -> None:
    """The GPU comes first; it is opened, and what keeps it from that is a warning with the next step."""
    jetson = candidates(describe(recording("orin-nano"), room("orin-nano")))
    found = {finding.check: finding for finding in compute.devices(jetson)}
    assert found["device cuda-sm_87"].status == "warning"
    assert "driver" in found["device cuda-sm_87"].detail
    assert "tried first" in found["device cuda-sm_87"].detail
    assert found["device cpu"].status == "ok"


def test_devices_that_are_there_and_not_used() -> None:
    """A GPU that could be tried is mentioned; a card without its driver is a warning."""
    (processor, graphics) = compute.devices(candidates(describe(recording("n100"), room("n100"))))
    assert (processor.check, processor.status) == ("device cpu", "ok")
    assert (graphics.check, graphics.status) == ("device vulkan", "ok")
    assert "To try it" in graphics.hint
    card = describe(recording("n100"), room("n100")).model_copy(
        update={"gpus": (Gpu(name="NVIDIA graphics 10de:2684", vendor="nvidia"),)}
    )
    assert [finding.status for finding in compute.devices(candidates(card))] == ["ok", "warning", "warning"]


def test_no_device_of_the_setting_is_here() -> None:
    """Settings that leave nothing are a problem, with the reasons."""
    (finding,) = compute.devices(candidates(describe(recording("pi5"), room("pi5")), ("cuda",)))
    assert finding.status == "problem"
    assert "no NVIDIA GPU" in finding.detail


def test_memory_of_the_loaded_model_counts_as_free(start_hob: StartHob) -> None:
    """The model that a running Hob has loaded gives way to the next, so its memory can be had."""
    hob = start_hob()
    settings = load_settings(data_dir=hob.data_dir, port=hob.port)
    held = compute.running(settings)["engine"]["memory"]
    assert held > 0
    machine = describe(recording("pi5"), room("pi5"))
    needed = doctor.model_fit("m", GOLDEN / "llama3rope" / "q4f16_1", settings, Memory(2**33, 0)).needed
    models = {"tiny": GOLDEN / "llama3rope" / "q4f16_1"}
    for port, fits in ((hob.port, True), (0, False)):
        settings = load_settings(data_dir=hob.data_dir, port=port)
        report = doctor.examine(settings, machine, "x", models, Memory(2**33, needed - 1))
        assert report.models[0].fits is fits


def test_measuring(tmp_path: Path) -> None:
    """--measure measures and keeps the result, or says that other programs leave no time."""
    result = subprocess.run(
        ["hob", "doctor", "--measure", "--json"],
        env={"HOB_DATA_DIR": str(tmp_path), "HOB_PORT": "0", "PATH": _path()},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 0:
        measured = json.loads(result.stdout)["measured"]
        assert measured["decode"] > 0
        assert json.loads((tmp_path / "measured.json").read_text()) == measured
    else:
        assert "other programs" in result.stderr


def test_a_taken_port_is_a_problem(tmp_path: Path) -> None:
    """Another program on the port is named as such, with another port to choose."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        number = other.getsockname()[1]
        finding = doctor.port(load_settings(data_dir=tmp_path, port=number))
    assert finding.status == "problem"
    assert f"--port {number + 1}" in finding.hint


def test_a_damaged_database_is_a_problem(tmp_path: Path) -> None:
    """A file that is not a database is found before the service stumbles over it."""
    damaged = tmp_path / "hob.db"
    damaged.write_bytes(b"not a database" * 100)
    assert doctor.chats(damaged).status == "problem"
    sound = tmp_path / "sound.db"
    connection = sqlite3.connect(sound)
    connection.execute("create table t (x)")
    connection.close()
    assert doctor.chats(sound).status == "ok"


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    """A folder that is no MLC directory is a problem that names the file."""
    (tmp_path / "broken").mkdir()
    settings = load_settings(data_dir=tmp_path)
    fit = doctor.model_fit("broken", tmp_path / "broken", settings, Memory(2**33, 2**33))
    assert not fit.fits
    assert fit.verdict == "damaged"
    assert "damaged" in fit.detail
    (finding,) = doctor.models_found((fit,))
    assert finding.status == "problem"


def test_no_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ld, lld and ziglang the check says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    finding = doctor.linker()
    assert finding.status == "problem"
    assert "hob-appliance[linker]" in finding.hint


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
