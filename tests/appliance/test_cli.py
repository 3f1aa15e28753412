"""The commands: `hob model`, `hob chat`, and how errors look in a terminal."""

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.builder.import_.ggml import TYPES, write_gguf
from tests.builder.import_.models import config_of, tensors_of
from tests.service import GOLDEN, HOB, MODEL, TINY, Hob, environment, run_hob

SOURCE = GOLDEN / "llama3rope"
UNIT = Path(__file__).parents[2] / "systemd/hob-engine.service"


def test_help_names_every_verb(tmp_path: Path) -> None:
    """`hob --help` lists the verbs with what they do."""
    done = run_hob(tmp_path, "--help")
    assert done.returncode == 0
    for verb in ("serve", "chat", "model", "key", "discover", "doctor"):
        assert f"\n  {verb} " in done.stdout


def test_bad_setting_is_one_line(tmp_path: Path) -> None:
    """A setting out of range is named with its value, and exit code 1."""
    done = run_hob(tmp_path, "serve", HOB_PORT="70000")
    assert done.returncode == 1
    assert done.stderr.startswith("hob: setting 'port':")
    assert "70000" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_no_engine_where_others_run_the_models(tmp_path: Path) -> None:
    """It ends with the status that its unit takes for no reason to start it again."""
    settings = {"HOB_ENGINE": "upstream", "HOB_UPSTREAMS": "http://127.0.0.1:9"}
    done = run_hob(tmp_path, "engine", **settings)
    assert f"RestartPreventExitStatus={done.returncode}\n" in UNIT.read_text()
    assert "other servers run the models" in done.stderr


def test_model_list(tmp_path: Path, data_dir: Path) -> None:
    """Models are listed for people and as JSON, damaged ones with their problem."""
    (data_dir / "models" / "broken").mkdir()
    (data_dir / "models" / "broken" / "mlc-chat-config.json").write_text("{")
    done = run_hob(data_dir, "model", "list", "--json")
    cards = {card["name"]: card for card in json.loads(done.stdout)}
    assert cards[TINY]["quantization"] == "q4f16_1"
    assert "mlc-chat-config.json" in cards["broken"]["problem"]
    shown = run_hob(data_dir, "model", "list", COLUMNS="200").stdout
    assert TINY in shown
    assert "damaged" in shown


def test_model_convert_makes_a_model_that_is_found(tmp_path: Path) -> None:
    """Without a destination the model goes where Hob finds it; a second time is refused."""
    arguments = ("model", "convert", str(SOURCE / "hf"), "--quantization", "q4f32_1")
    done = run_hob(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "models" / "hf-q4f32_1")
    listed = json.loads(run_hob(tmp_path, "model", "list", "--json").stdout)
    assert "hf-q4f32_1" in {card["name"] for card in listed}
    again = run_hob(tmp_path, *arguments)
    assert again.returncode == 1
    assert "\nhob: " in f"\n{again.stderr}"


def test_model_convert_takes_a_file(tmp_path: Path) -> None:
    """One file of weights is enough, and its name without the ending becomes the model's."""
    config = config_of("llama", num_hidden_layers=1)
    file = write_gguf(tmp_path / "small.Q8_0.gguf", "llama", config, tensors_of(config), TYPES.Q8_0)
    done = run_hob(tmp_path, "model", "convert", str(file))
    assert done.stdout.strip() == str(tmp_path / "models" / "small.Q8_0-q4f16_1"), done.stderr
    assert (tmp_path / "models" / "small.Q8_0-q4f16_1" / "tokenizer.json").is_file()


def test_model_convert_elsewhere_says_where_to_put_it(tmp_path: Path) -> None:
    """A destination outside the models folder is honoured, with a word on how to use it; so is a context."""
    out = tmp_path / "elsewhere"
    done = run_hob(tmp_path, "model", "convert", str(SOURCE / "hf"), str(out), "--context", "512")
    assert done.stdout.strip() == str(out)
    assert str(tmp_path / "models") in done.stderr
    assert json.loads((out / "mlc-chat-config.json").read_text())["context_window_size"] == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", "convert", "/nowhere"), "/nowhere"),
        (("model", "compile", "nobody"), "'nobody' is not installed"),
        (("model", "compile", TINY, "--target", "abacus"), "abacus"),
        (("model", "compile", TINY, "--kernels", "sloppy"), "kernels"),
        (("model", "probe", TINY, "--ids", "one"), "--ids"),
        (("model", "probe", TINY, "--ids", "1,2000000"), "2000000"),
        (("model", "probe", TINY, "--ids", "1", "--new", "0"), "new"),
        (("chat", "--url", "ftp://hob", "Hello"), "ftp://hob"),
        (("chat", "--url", "http://127.0.0.1:9", "Hello"), "http://127.0.0.1:9"),
        (("chat", " "), "empty"),
    ],
)
def test_errors_are_one_line_and_a_hint(data_dir: Path, arguments: tuple[str, ...], message: str) -> None:
    """What cannot be done is said in one line that names it, with exit code 1 and no traceback."""
    done = run_hob(data_dir, *arguments)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("hob: ")]
    assert len(said) == 1, done.stderr
    assert message in said[0]
    assert "Traceback" not in done.stderr


def test_model_probe(data_dir: Path) -> None:
    """Greedy ids, five best logits per step and timings, as JSON and for people."""
    arguments = ("model", "probe", TINY, "--ids", "1,2,3", "--new", "4")
    done = run_hob(data_dir, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["greedy_ids"]) == len(found["top"]) == 4
    assert [step[0]["token"] for step in found["top"]] == found["greedy_ids"]
    assert all(len(step) == 5 for step in found["top"])
    assert found["decode"] > 0
    shown = run_hob(data_dir, *arguments).stdout
    assert all(str(token) in shown for token in found["greedy_ids"])


def test_chat_answers_a_question_and_ends(server: Hob) -> None:
    """A question as argument or from a pipe prints the answer and nothing else."""
    arguments = ("chat", "--url", server.url, "--model", MODEL)
    asked = run_hob(server.data_dir, *arguments, "Hello")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    piped = run_hob(server.data_dir, *arguments, stdin="Hello\n")
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.strip()


def test_chat_says_what_the_server_says(server: Hob) -> None:
    """A refusal is shown in the server's words."""
    done = run_hob(server.data_dir, "chat", "--url", server.url, "--model", "nobody", "Hello")
    assert done.returncode == 1
    assert done.stderr.startswith("hob: model 'nobody' is not installed")


def test_chat_converses_in_a_terminal(server: Hob) -> None:
    """On a terminal it asks again until Ctrl-D; later questions know the earlier ones."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [HOB, "chat", "--url", server.url],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env=environment(server.data_dir, TERM="dumb"),
    )
    os.close(secondary)

    def read_until(mark: bytes) -> bytes:
        seen = b""
        while not seen.endswith(mark):
            seen += os.read(primary, 1)
        return seen

    read_until(b"> ")
    os.write(primary, b"Hello\n")
    first = read_until(b"\n> ")
    assert len(first.splitlines()) > 1
    os.write(primary, b"Thanks\n")
    read_until(b"\n> ")
    os.write(primary, b"\x04")
    assert process.wait(30) == 0
    os.close(primary)
