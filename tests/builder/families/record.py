"""Record what transformers makes of the tiny models: `just references [NAME …]`.

Writes `tests/golden/families/<name>.npz` with float32 logits [ROWS, vocab] at the last positions of both
texts, "long" and "short". Needs torch and transformers, which live in an environment of their own.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.builder.families.tiny import GOLDEN, MODELS, ROWS, prompts, write_tiny


def record(name: str) -> None:
    """Run one model in float32, without a cache, and keep its last logits."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_tiny(name, Path(folder) / "hf")
        model, told = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    problems = {kind: names for kind, names in told.items() if names}
    assert not problems, f"{name}: transformers has other tensors: {problems}"
    model.eval()
    with torch.no_grad():
        rows = [model(torch.tensor([ids])).logits[0, -ROWS:].numpy() for ids in prompts()]
    np.savez_compressed(GOLDEN / f"{name}.npz", long=rows[0], short=rows[1])
    print(name, [f"{part.std():.2f}" for part in rows])


if __name__ == "__main__":
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    GOLDEN.mkdir(exist_ok=True)
    for wanted in sys.argv[1:] or MODELS:
        record(wanted)
