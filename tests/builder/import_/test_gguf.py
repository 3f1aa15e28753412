"""GGUF files, written by the `gguf` package: weights, names, configuration."""

from pathlib import Path

import numpy as np
import pytest

from builder.compile.import_.source import open_source
from tests.builder.import_.ggml import TYPES, write_gguf
from tests.builder.import_.models import CONFIGS, config_of, tensors_of

FLOATS = [TYPES.F32, TYPES.F16, TYPES.BF16]


@pytest.mark.parametrize("family", CONFIGS)
def test_config_and_tensors(family: str, tmp_path: Path) -> None:
    """Every family's configuration and tensors come back as Hugging Face has them."""
    config = config_of(family)
    tensors = tensors_of(config)
    file = write_gguf(tmp_path / "model", family, config, tensors)
    with open_source(file) as source:
        assert config.items() <= source.config.items()
        assert list(source.tensors) == sorted(tensors)
        assert source.parameters == sum(weights.size for weights in tensors.values())
        for name, weights in tensors.items():
            rows = len(weights) if weights.ndim > 1 else 1
            assert source.tensors[name].shape == weights.shape
            assert np.array_equal(source.rows(name, 0, rows).reshape(weights.shape), weights), name
