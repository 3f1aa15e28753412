"""Hashing an image and parts of it in one pass."""

import hashlib
import lzma
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.errors import FormatError
from builder.image import checksums
from builder.image.checksums import PIECE, Span, measure

NOISE = random.Random(3).randbytes(2 * PIECE + 12345)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The noise as an xz file of several blocks."""
    path = tmp_path_factory.mktemp("packed") / "noise.img.xz"
    path.write_bytes(lzma.compress(NOISE[:PIECE], preset=0) + lzma.compress(NOISE[PIECE:], preset=0))
    return path


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(NOISE) + 10), st.integers(0, len(NOISE)), st.sampled_from(["sha256", "sha512"])
        )
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spans_are_hashed_wherever_they_lie(packed: Path, wanted: list[tuple[int, int, str]]) -> None:
    """In any order, overlapping, empty, across the pieces that are read, and past the end."""
    spans = [Span(start, start + length, kind) for start, length, kind in wanted]
    sums = measure(packed, spans)
    assert (sums.size, sums.sha256) == (len(NOISE), hashlib.sha256(NOISE).hexdigest())
    assert sums.head == NOISE[:PIECE]
    assert list(sums.spans) == [
        hashlib.new(span.hash, NOISE[span.start : span.end]).hexdigest() for span in spans
    ]


def test_an_unpacked_file_is_read_as_it_is(tmp_path: Path) -> None:
    """The magic number decides, not the name; progress ends with the size."""
    path = tmp_path / "noise.img.xz"
    path.write_bytes(NOISE)
    told: list[int] = []
    assert measure(path, tell=told.append).sha256 == hashlib.sha256(NOISE).hexdigest()
    assert told[-1] == len(NOISE)


@pytest.mark.parametrize("keep", [7, 100, 500_000, -1])
def test_a_packed_file_that_is_cut_off_is_refused(packed: Path, tmp_path: Path, keep: int) -> None:
    """Wherever the transfer broke."""
    path = tmp_path / "short.img.xz"
    path.write_bytes(packed.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"short\.img\.xz cannot be unpacked"):
        measure(path)


def test_a_packed_file_with_another_byte_is_refused(packed: Path, tmp_path: Path) -> None:
    """xz has checksums of its own."""
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "bad.img.xz"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="cannot be unpacked"):
        list(checksums.pieces(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """By name, with the system's reason."""
    with pytest.raises(FormatError, match=r"none\.img: No such file"):
        measure(tmp_path / "none.img")
