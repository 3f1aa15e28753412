"""Every kernel test runs once per instruction set that this CPU has."""

import numpy as np
import pytest

from builder.compile import targets
from builder.compile.kernels.isa import ISAS, Isa

OF_THIS_MACHINE = [ISAS[level.isa] for level in targets.LEVELS if level.arch == targets.machine()]


@pytest.fixture(scope="package", params=OF_THIS_MACHINE, ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Isa:
    """An instruction set."""
    chosen: Isa = request.param
    return chosen


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run."""
    return np.random.default_rng(20260823)
