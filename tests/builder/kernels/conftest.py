"""Every kernel test runs once per instruction set that this CPU has."""

import numpy as np
import pytest

from builder.compile.kernels.isa import AVX2, AVX512_VNNI, GENERIC, Isa


@pytest.fixture(scope="package", params=[AVX512_VNNI, AVX2, GENERIC], ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    """An instruction set."""
    chosen: Isa = request.param
    return chosen


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run."""
    return np.random.default_rng(20260823)
