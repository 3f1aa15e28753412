"""`python -m builder.guide train|eval|quality`: make the guide anew, examine it, see what formats cost."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from builder.errors import BuildError
from builder.guide import quality
from builder.guide.evaluate import MODEL, evaluate, report, share

GOAL = 0.9


def main(arguments: list[str] | None = None) -> int:
    """Run a verb. Exit code 1 of the exam: the guide answers less than `GOAL` right."""
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
    cost = verbs.add_parser("quality", help="print the perplexity in every weight format")
    cost.add_argument(
        "--work", type=Path, default=quality.CHECKPOINTS, help="folder of checkpoints (out/guide)"
    )
    cost.add_argument("--texts", type=int, help="use only the first so many held-out questions")
    cost.add_argument("--json", action="store_true", help="print JSON lines")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.verb == "quality":
            print_quality(chosen.work, chosen.texts, as_json=chosen.json)
            return 0
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


def print_quality(checkpoints: Path, count: int | None, *, as_json: bool) -> None:
    """Measure every weight format on the first `count` texts, or all, and print what was found."""
    base, texts = quality.baseline(checkpoints), quality.heldout_texts()[:count]
    perplexity, found = quality.measure(base.guide, texts)
    if not as_json:
        print(quality.report(perplexity, found, texts, base.what))
        return
    print(json.dumps({"baseline": base.what, "perplexity": perplexity, "texts": len(texts)}))
    for one in found:
        print(json.dumps(asdict(one)))


if __name__ == "__main__":
    sys.exit(main())
