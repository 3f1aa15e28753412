"""What may be used, inside control groups too, and what fits into it."""

from pathlib import Path

import pytest

from appliance.hardware.memory import Group, Memory, fits, groups, kv_bytes, largest_model, memory, within

GIB = 2**30


def write(folder: Path, **files: str) -> None:
    """Files of a control group; "__" stands for the dot in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_this_machine() -> None:
    """There is memory, and not more of it free than there is."""
    found = memory()
    assert 0 < found.available <= found.total


def test_without_limits_the_machine_counts() -> None:
    """No control group, no change."""
    assert within(8 * GIB, 5 * GIB, iter(())) == Memory(8 * GIB, 5 * GIB, limited=False)


def test_a_limit_counts_with_what_is_used_of_it() -> None:
    """A container of 2 GiB that uses 1.5, half a GiB of it cached files, has 1 GiB left."""
    container = Group(2 * GIB, GIB + GIB // 2, GIB // 2)
    assert within(8 * GIB, 5 * GIB, iter([container])) == Memory(2 * GIB, GIB, limited=True)


def test_a_limit_above_what_is_free_changes_nothing_but_the_total() -> None:
    """Where the machine itself is short, that is what counts."""
    assert within(8 * GIB, GIB, iter([Group(6 * GIB, GIB, 0)])) == Memory(6 * GIB, GIB, limited=True)


def test_the_tightest_of_nested_limits_counts() -> None:
    """A unit inside a slice has to keep to both."""
    nested = [Group(6 * GIB, GIB, 0), Group(4 * GIB, 3 * GIB + GIB // 2, 0)]
    assert within(8 * GIB, 7 * GIB, iter(nested)) == Memory(4 * GIB, GIB // 2, limited=True)


def test_a_group_over_its_limit_has_nothing() -> None:
    """Available memory is never negative."""
    assert within(8 * GIB, 5 * GIB, iter([Group(GIB, 2 * GIB, 0)])).available == 0


def test_version_2(tmp_path: Path) -> None:
    """All groups from the innermost to the root are read; "max" is no limit."""
    write(tmp_path / "proc/self", cgroup="0::/system.slice/hob.service\n")
    slice_ = tmp_path / "sys/fs/cgroup/system.slice"
    write(slice_, memory__max="max\n", memory__current="500\n", memory__stat="anon 1\n")
    write(
        slice_ / "hob.service",
        memory__max="1000\n",
        memory__current="700\n",
        memory__stat="anon 600\nfile 110\ninactive_file 40\nactive_file 60\n",
    )
    assert list(groups(tmp_path)) == [Group(1000, 700, 100)]


def test_version_2_in_a_container(tmp_path: Path) -> None:
    """The container's own group is the root it sees; with the host's path, which is not there, as well."""
    for path in ("/", "/docker/0123"):
        write(tmp_path / "proc/self", cgroup=f"0::{path}\n")
        write(
            tmp_path / "sys/fs/cgroup", memory__max="1000\n", memory__current="300\n", memory__stat="file 5\n"
        )
        assert list(groups(tmp_path)) == [Group(1000, 300, 0)]


def test_version_1(tmp_path: Path) -> None:
    """The older interface: a folder per controller, and a huge number for no limit."""
    write(tmp_path / "proc/self", cgroup="4:memory:/box\n3:cpuset:/box\n0::/\n")
    root = tmp_path / "sys/fs/cgroup/memory"
    files = {"memory__usage_in_bytes": "400\n", "memory__stat": "total_inactive_file 30\ninactive_file 10\n"}
    write(root, memory__limit_in_bytes="9223372036854771712\n", **files)
    write(root / "box", memory__limit_in_bytes="1000\n", **files)
    assert list(groups(tmp_path)) == [Group(1000, 400, 30)]


@pytest.mark.parametrize("damage", ["memory.max", "memory.current", "memory.stat"])
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, damage: str) -> None:
    """A file that is missing or holds something else is passed over, not died of."""
    write(tmp_path / "proc/self", cgroup="0::/\n")
    group = tmp_path / "sys/fs/cgroup"
    write(group, memory__max="1000\n", memory__current="1\n", memory__stat="file 1\n")
    (group / damage).write_text("what is this\nfor a file\n")
    assert list(groups(tmp_path)) == []
    (group / damage).unlink()
    assert list(groups(tmp_path)) == []


def test_no_control_groups(tmp_path: Path) -> None:
    """A system without them has no limits."""
    assert list(groups(tmp_path)) == []


def test_kv_bytes_of_a_known_shape() -> None:
    """Llama-3.2-1B: 16 layers, 8 KV heads of 64, float32 K and V: 64 KiB a token."""
    shape = {"num_hidden_layers": 16, "num_key_value_heads": 8, "num_attention_heads": 32, "head_dim": 64}
    assert kv_bytes({"model_config": shape}, 4096) == 4096 * 64 * 1024


def test_largest_model_grows_with_memory() -> None:
    """Nothing fits into nothing; 8 GiB hold a model of ten-odd billion 4-bit weights, not twenty."""
    assert largest_model(0) == 0
    assert 10 < largest_model(8 * 2**30) < 15


@pytest.mark.parametrize(
    ("available", "total", "verdict"),
    [(4 * GIB, 8 * GIB, "fits"), (1 * GIB, 8 * GIB, "not now"), (1 * GIB, 1 * GIB, "never")],
)
def test_fits(available: int, total: int, verdict: str) -> None:
    """A model fits now, would fit if other programs made room, or never will."""
    fit = fits(2 * GIB, GIB // 2, available, total)
    assert fit.verdict == verdict
    assert fit.fits is (verdict == "fits")
    assert fit.needed > 2 * GIB + GIB // 2
