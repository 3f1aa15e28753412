"""Tiny models that have GPU kernels."""

import json
from pathlib import Path

from builder.compile.convert import convert
from tests.builder.families.tiny import CONTEXTS, write_tiny


def make(name: str, folder: Path, quantization: str) -> Path:
    """The MLC directory of a tiny model; layers with windows, which have no GPU kernels, see everything."""
    checkpoint = write_tiny(name, folder / "hf")
    config = json.loads((checkpoint / "config.json").read_text())
    if "use_sliding_window" in config:
        (checkpoint / "config.json").write_text(json.dumps({**config, "use_sliding_window": False}))
    model = folder / "model"
    convert(checkpoint, model, quantization, context_window_size=CONTEXTS.get(name))
    return model
