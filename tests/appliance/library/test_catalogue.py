"""The catalogue: every entry is complete, true to itself, and nothing in the code knows it."""

import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from appliance.library.catalogue import FILE, Known, catalogue
from appliance.library.source import Hub, parse

ROOT = Path(__file__).parents[3]
# Those that SPDX lists and that occur; anything else has to call itself a LicenseRef.
SPDX = {"Apache-2.0", "MIT"}


@pytest.mark.parametrize("known", catalogue(), ids=lambda known: known.name)
def test_an_entry_is_well_formed(known: Known) -> None:
    """Its source is one that can be added, its licence an SPDX expression, its numbers agree."""
    source = parse(known.address)
    assert isinstance(source, Hub)
    assert (source.repository, source.revision) == (known.source, known.revision)
    assert known.revision == "main" or re.fullmatch("[0-9a-f]{40}", known.revision)
    assert known.licence in SPDX or known.licence.startswith("LicenseRef-")
    assert known.weights <= known.download
    assert known.cache % (8 * 16) == 0, "8 bytes for each head dimension, a multiple of 16"
    assert known.good_for == known.good_for.strip(" .")
    assert known.fit(2048).needed < known.fit(4096).needed


def test_the_order_is_by_size_and_nothing_is_there_twice() -> None:
    """A small device's models come first."""
    entries = catalogue()
    assert all(left.weights <= right.weights * 1.2 for left, right in pairwise(entries))
    for names in ({known.name for known in entries}, {known.source for known in entries}):
        assert len(names) == len(entries)


def test_a_wrong_entry_is_refused() -> None:
    """A misspelt field or an empty text does not pass."""
    text = FILE.read_text()
    for old, new in (
        ("good_for =", "goodfor ="),
        ('licence = "MIT"', 'licence = ""'),
        ("weights = 2", "weights = -2"),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.toml.decode(text.replace(old, new, 1), type=dict[str, tuple[Known, ...]])


def test_no_code_knows_a_model() -> None:
    """Names of the catalogue's models are data: they occur in no program."""
    code = [file for package in ("appliance", "builder", "webui") for file in (ROOT / package).rglob("*.py")]
    for file in code:
        text = file.read_text()
        for known in catalogue():
            assert known.source not in text, file
            assert f'"{known.name}"' not in text, file
