"""Reading partition tables."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import FormatError
from builder.image import gpt
from tests.builder.image.disks import ESP, MIB, Part, table


def test_a_table_tells_what_lies_where() -> None:
    """Labels, identities and places in bytes, and the size of the disk it was made for."""
    read = gpt.read(table(16 * MIB // 512, [Part("HOB", 2048, 4095), Part("größe", 4096, 8191)]))
    assert read is not None
    assert read.disk == 16 * MIB
    assert read.partitions == (
        gpt.Partition("HOB", "00000000-0000-0000-0000-000000000001", str(ESP), MIB, MIB),
        gpt.Partition("größe", "00000000-0000-0000-0000-000000000002", str(ESP), 2 * MIB, 2 * MIB),
    )
    assert read.find("größe") == read.partitions[1]
    assert read.find("data") is None


def test_a_disk_without_a_table_has_none() -> None:
    """An MBR alone, or nothing at all, is no error."""
    assert gpt.read(b"") is None
    assert gpt.read(bytes(MIB)) is None


@pytest.mark.parametrize("end", [520, 600, 1024, 4096])
def test_a_table_that_is_cut_off_is_refused(end: int) -> None:
    """A prefix of a table is not a shorter table."""
    with pytest.raises(FormatError, match="cut off"):
        gpt.read(table(4096, [Part("HOB", 2048, 4000)])[:end])


@given(where=st.integers(512, 512 + 91), to=st.integers(0, 255))
def test_any_other_byte_in_the_header_is_refused(where: int, to: int) -> None:
    """Each byte of the header is either the one it was, or makes the table invalid or absent."""
    head = bytearray(table(4096, [Part("HOB", 2048, 4000)]))
    was = gpt.read(bytes(head))
    if head[where] == to:
        return
    head[where] = to
    try:
        assert gpt.read(bytes(head)) in (None, was)  # no signature, no table
        assert where < 520
    except FormatError:
        pass


def test_a_changed_entry_is_refused() -> None:
    """The entries have a checksum of their own."""
    head = bytearray(table(4096, [Part("HOB", 2048, 4000)]))
    head[1024 + 56] ^= 1
    with pytest.raises(FormatError, match="checksum"):
        gpt.read(bytes(head))


def test_systemd_repart_writes_what_is_read() -> None:
    """A real table, from a recorded disk."""
    recorded = Path(__file__).with_name("recorded") / "repart.gpt"
    read = gpt.read(recorded.read_bytes())
    assert read is not None
    assert [(part.label, part.start, part.size) for part in read.partitions] == [
        ("HOB", 1 * MIB, 64 * MIB),
        ("root-a", 65 * MIB, 16 * MIB),
    ]
