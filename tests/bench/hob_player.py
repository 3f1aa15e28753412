"""Hob's side of the benchmark: the engine in a process of its own, one JSON command a line."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

START = time.perf_counter()  # before the runtime's imports: they are part of what a person waits for


def main() -> None:
    """Load the model, then answer one JSON command a line."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("library", type=Path)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--context", type=int, required=True)
    options = arguments.parse_args()
    import psutil

    from appliance.engine.native import NativeModel

    model = NativeModel.load(
        options.directory, options.library, context=options.context, threads=options.threads
    )
    model.add_sequence(0)
    model.prefill(0, [1])
    model.remove_sequence(0)
    print(json.dumps({"load": time.perf_counter() - START}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {"rss": psutil.Process().memory_info().rss}
        if ids := command.get("ids"):
            model.add_sequence(0)
            start = time.perf_counter()
            logits = model.prefill(0, ids)
            answer["prefill"] = time.perf_counter() - start
            answer["first"] = token = int(logits.argmax())
            start = time.perf_counter()
            for _ in range(command["new"]):
                model.decode([0], [token])
            answer["decode"] = time.perf_counter() - start
            model.remove_sequence(0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
