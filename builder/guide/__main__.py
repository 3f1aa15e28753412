"""`python -m builder.guide train|eval`: make the guide anew, or ask it the held-out questions."""

import argparse
import sys
from pathlib import Path

from builder.errors import BuildError
from builder.guide.evaluate import MODEL, evaluate, report, share

GOAL = 0.9


def main(arguments: list[str] | None = None) -> int:
    """Run a verb. Exit code 1: the guide that is there or was made answers less than `GOAL` right."""
    parser = argparse.ArgumentParser(prog="python -m builder.guide", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    ask = verbs.add_parser("eval", help="print the wrong answers and the share of right ones")
    ask.add_argument("--model", type=Path, default=MODEL, help="MLC directory (the built-in one)")
    make = verbs.add_parser("train", help="train from nothing; needs torch")
    make.add_argument("--out", type=Path, default=MODEL, help="directory to write (the built-in one)")
    make.add_argument(
        "--work",
        type=Path,
        default=Path("out/guide"),
        help="folder of checkpoints; an interrupted run goes on",
    )
    make.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.verb == "eval":
            verdicts = evaluate(chosen.model)
        else:
            # torch lives in an environment of its own, so only this verb imports it.
            from builder.guide.export import export
            from builder.guide.train import PLAN, train

            trained = train(chosen.work, PLAN, chosen.threads)
            verdicts = export(trained.checkpoint, chosen.out, trained.tokens)
    except BuildError as error:
        print(f"guide: {error}\n       {error.hint}".rstrip(), file=sys.stderr)
        return 1
    print(report(verdicts))
    return 0 if share(verdicts) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
