"""`python -m builder.compile DIR CACHE`: compile in a process of its own, so that TVM's compiler never enters
the service. Standard output carries one JSON object per line: {"step", "fraction"}, and last {"library"} or
{"error", "hint"}; exit status 1 with the latter.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from builder.compile import compile_model
from builder.compile.targets import parse_target
from builder.errors import BuildError


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m builder.compile", description="Compile a model library.")
    parser.add_argument("directory", type=Path, help="MLC model directory")
    parser.add_argument("cache", type=Path, help="directory that libraries go to")
    parser.add_argument("--kernels", choices=("fast", "exact"), default="fast")
    parser.add_argument("--target", default="auto")
    options = parser.parse_args()
    try:
        library = compile_model(
            options.directory,
            options.cache,
            target=parse_target(options.target),
            kernels=options.kernels,
            progress=lambda step, fraction: _say(step=step, fraction=round(fraction, 3)),
        )
    except BuildError as error:
        _say(error=str(error), hint=error.hint)
        return 1
    _say(library=str(library))
    return 0


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main())
