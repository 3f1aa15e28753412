"""What is found on sticks."""

from pathlib import Path

from appliance.library import sticks
from appliance.library.sticks import Found, find


def put(path: Path, size: int = 10) -> None:
    """A file of so many bytes, in folders made on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def test_models_of_every_kind_are_found(tmp_path: Path) -> None:
    """Folders of weights, single files, archives; nothing inside a model, nothing hidden, nothing else."""
    stick = tmp_path / "media" / "anna" / "STICK"
    for name in ("mlc/mlc-chat-config.json", "mlc/params_shard_0.bin", "mlc/inner/more.gguf"):
        put(stick / name)
    for name in (
        "checkpoint/config.json",
        "checkpoint/model.safetensors",
        "photos/config.json",
        "photos/a.jpg",
    ):
        put(stick / name)
    for name in ("a.GGUF", "deep/b.hobmodel", ".Trash/c.gguf", "letter.txt"):
        put(stick / name, 7)
    (stick / "loop").symlink_to(stick)
    assert find([tmp_path / "media", tmp_path / "nowhere"]) == [
        Found(stick / "a.GGUF", 7),
        Found(stick / "checkpoint", 20),
        Found(stick / "deep" / "b.hobmodel", 7),
        Found(stick / "mlc", 20),
    ]


def test_the_search_is_bounded(tmp_path: Path) -> None:
    """However many files and folders there are."""
    for number in range(sticks.MOST + 5):
        put(tmp_path / f"{number}.gguf")
    assert len(find([tmp_path])) == sticks.MOST
    deep = tmp_path / "other"
    put(deep.joinpath(*"abcdefgh", "lost.gguf"))
    assert find([deep]) == []
