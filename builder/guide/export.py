"""From the trained checkpoint to the artefact: MLC directory and model card."""

import math
import shutil
from pathlib import Path

from builder.compile.convert import convert
from builder.guide.evaluate import Verdict, evaluate, share

QUANTISATION = "q4f16_1"
CARD = """\
# hob-guide

The guide that is built into Hob: a very small language model that answers questions about Hob, so that the
first start needs no download and the tests run a real model.

- **What it is not:** a general model. To everything but Hob it answers that it is only a small guide. It
  speaks English only, can be wrong, and must not be relied on for anything that matters.
- **Architecture:** Llama, {parameters:.1f} million weights, {context} tokens of context,
  byte-level BPE of {vocabulary} tokens, ChatML. Stored as MLC `{quantisation}` ({size:.1f} MB).
- **Data:** questions and answers written for this project (`builder/guide/topics`), varied by patterns and
  simulated typing errors. No other text, no downloaded data set, nobody's conversations.
- **Training:** from random weights, {tokens:.1f} million tokens, by `just guide-train` on two CPU cores; the
  last part with the rounding of `{quantisation}` simulated.
- **Evaluation:** {share:.1%} of {probes} held-out questions (`builder/guide/heldout.toml`; training can
  draw none of them) are answered right by these weights, decoding greedily. `just guide-eval`
  repeats it. Facts in the answer decide, by regular expressions; an answer to another topic is wrong.
- **Licence:** Apache-2.0, as Hob itself.
"""


def export(checkpoint: Path, out: Path, tokens: int) -> list[Verdict]:
    """Quantise `checkpoint` into the MLC directory `out`, evaluate it there, and add the model card.

    An older `out` is replaced once the new one is complete. `tokens` is the number the training saw. Returns
    the verdicts.

    Raises:
        BuildError: the checkpoint is not one that `convert` takes.
    """
    made = checkpoint.parent / "hob-guide"
    shutil.rmtree(made, ignore_errors=True)
    model = convert(checkpoint, made, QUANTISATION, prefill_chunk_size=512, max_batch_size=4)
    verdicts = evaluate(made)
    words = [entry for name, entry in model.tensors.items() if name.endswith("q_weight")]
    weights = sum(
        8 * math.prod(entry.shape) for entry in words
    )  # eight to a word; norms are too few to count
    card = CARD.format(
        parameters=weights / 1e6,
        context=model.context_window,
        vocabulary=model.vocab_size,
        quantisation=QUANTISATION,
        size=model.nbytes / 1e6,
        tokens=tokens / 1e6,
        share=share(verdicts),
        probes=len(verdicts),
    )
    (made / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(made, out)
    return verdicts
