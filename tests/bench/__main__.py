"""`just bench`: Hob beside llama.cpp on the same weights, as JSON lines.

Both engines stay loaded in processes of their own and take turns within every round, so that both see one
machine; figures are medians over the rounds, and every ratio compares neighbours in time. Read bandwidth is
measured in the same rounds, because decode is bound by it and hosts differ from minute to minute.
Without the peer's environment (`just bench-setup`) the peer's fields are null.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
from platformdirs import user_cache_path

from appliance.hardware.bandwidth import read_bandwidth
from builder.compile import compile_model
from builder.compile.mlc import MLCDirectory
from builder.compile.targets import detect_target
from tests.bench.shapes import SHAPES, make

ROOT = Path(__file__).parents[2]
PEER = "llama.cpp"
CONTEXT = 1024
NEW = 32


class Player:
    """An engine in a process, driven by JSON lines."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.command = command
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )
        self.load: float = self._answer()["load"]

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        stdin: IO[str] | None = self.process.stdin
        assert stdin
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process by closing its input."""
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.command[:4])} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def report(name: str, value: float, unit: str, peer: float | None = None, bar: float | None = None) -> None:
    """Print one result. The ratio is above 1 where Hob is better."""
    ratio = None
    if peer:
        ratio = round(peer / value if unit in {"s", "MiB"} else value / peer, 3)
    line = {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "peer": PEER if peer else None,
        "peer_value": round(peer, 3) if peer else None,
        "ratio": ratio,
        "bar": bar,
    }
    print(json.dumps(line), flush=True)


def calm(limit: float = 30.0) -> None:
    """Wait, for `limit` seconds at most, until other programs use less than a tenth of the processor."""
    end = time.monotonic() + limit
    while psutil.cpu_percent(0.5) > 10 and time.monotonic() < end:
        pass


def duel(directory: MLCDirectory, library: Path, threads: int, rounds: int, name: str) -> None:
    """Play one shape, both engines in turn, and report."""
    common = ["--threads", str(threads), "--context", str(CONTEXT)]
    calm()
    ours = Player(
        [sys.executable, "-m", "tests.bench.hob_player", str(directory.path), str(library), *common],
        {"TVM_NUM_THREADS": str(threads)},
    )
    players = {"hob": ours}
    python = ROOT / ".venv-bench/bin/python"
    if python.exists():
        command = [str(python), "-m", "tests.bench.llama_player", str(directory.path), *common]
        players[PEER] = Player(command, {})
    else:
        say("llama.cpp is not set up (`just bench-setup`): measuring Hob alone")
    random = np.random.default_rng(3)
    figures: dict[str, dict[str, list[float]]] = {player: {} for player in players}
    reads = []
    for turn in range(rounds):
        calm()
        reads.append(read_bandwidth(threads))
        for length in (128, 512):
            ids = random.integers(0, directory.vocab_size, length).tolist()
            first = {}
            for player, process in players.items():
                answer = process.ask(ids=ids, new=NEW if length == 128 else 0)
                first[player] = answer["first"]
                mine = figures[player]
                mine.setdefault(f"prefill {length}", []).append(length / answer["prefill"])
                if length == 128:
                    mine.setdefault("decode", []).append(NEW / answer["decode"])
                    mine.setdefault("time to first token", []).append(answer["prefill"])
            say(f"{name}: round {turn + 1}/{rounds}, {length} tokens, first token {first}")
    for key, unit, bar in (
        ("decode", "tok/s", 1.0),
        ("prefill 128", "tok/s", 1.5),
        ("prefill 512", "tok/s", 1.5),
        ("time to first token", "s", None),
    ):
        medians = {player: statistics.median(values[key]) for player, values in figures.items()}
        report(f"{name} {key}", medians["hob"], unit, medians.get(PEER), bar)
    report(f"{name} load", ours.load, "s", players[PEER].load if PEER in players else None)
    rss = {player: process.ask()["rss"] / 2**20 for player, process in players.items()}
    report(f"{name} memory", rss["hob"], "MiB", rss.get(PEER))
    read = statistics.median(reads)
    report(f"{name} read bandwidth", read, "GB/s")
    decode = statistics.median(figures["hob"]["decode"])
    report(f"{name} share of bandwidth in decode", decode * directory.nbytes / 1e9 / read, "")
    for process in players.values():
        process.close()


@contextmanager
def served(data: Path) -> Iterator[float]:
    """Start `hob serve` on a free port; gives the seconds until it is ready, and stops it."""
    port = free_port()
    start = time.perf_counter()
    command = [str(Path(sys.executable).parent / "hob"), "serve", "--port", str(port)]
    process = subprocess.Popen(
        command,
        env=os.environ | {"HOB_DATA_DIR": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while time.perf_counter() - start < 120:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
                    break
            except (OSError, urllib.error.URLError):
                time.sleep(0.01)
        yield time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    """A TCP port nobody uses now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def startup(folder: Path, rounds: int) -> None:
    """From the command to a loaded built-in model: with everything to compile, and again."""
    data = folder / "startup"
    shutil.rmtree(data, ignore_errors=True)
    with served(data) as first:
        pass
    report("first start", first, "s", bar=60)
    again = []
    for _ in range(rounds):
        with served(data) as seconds:
            again.append(seconds)
    report("second start", statistics.median(again), "s", bar=2)


def main() -> None:
    """Measure everything, or what is named."""
    arguments = argparse.ArgumentParser(prog="just bench")
    names = ["startup", "imports", *(shape.name for shape in SHAPES)]
    arguments.add_argument("only", nargs="*", choices=[[], *names], metavar="NAME", help=", ".join(names))
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    options = arguments.parse_args()
    folder = user_cache_path("hob") / "bench"
    if not options.only or "startup" in options.only:
        startup(folder, options.rounds)
    if not options.only or "imports" in options.only:
        from tests.bench.imports import imports  # the writers of its checkpoints

        imports(folder, report, say)
    for shape in SHAPES:
        if options.only and shape.name not in options.only:
            continue
        say(f"{shape.name}: preparing the model")
        directory = make(shape, folder)
        library = compile_model(
            directory.path,
            folder / "libraries",
            target=detect_target(),
            kernels="fast",
            progress=lambda step, fraction: say(f"  {step} {fraction:.0%}"),
        )
        duel(directory, library, options.threads, options.rounds, shape.name)


if __name__ == "__main__":
    main()
