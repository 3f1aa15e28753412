"""Which of a repository's files make up its model."""

import pytest

from appliance.errors import HobError, InvalidRequestError, LibraryError
from appliance.library.choose import choose

SIDE = {"config.json": 700, "tokenizer.json": 9_000_000, "tokenizer_config.json": 3000, "LICENSE": 11_000}
OTHER = {"README.md": 9000, ".gitattributes": 1500, "logo.png": 80_000, "original/params.json": 200}


@pytest.mark.parametrize(
    ("files", "form", "weights"),
    [
        ({"model.safetensors": 5, "pytorch_model.bin": 5}, "safetensors", ["model.safetensors"]),
        (
            {
                "model-00001-of-00002.safetensors": 5,
                "model-00002-of-00002.safetensors": 5,
                "model.safetensors.index.json": 1,
                "consolidated.safetensors": 10,
                "original/consolidated.00.pth": 10,
            },
            "safetensors",
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        ({"weights.safetensors": 5}, "safetensors", ["weights.safetensors"]),
        (
            {
                "pytorch_model-00001-of-00001.bin": 5,
                "pytorch_model.bin.index.json": 1,
                "training_args.bin": 1,
            },
            "torch",
            ["pytorch_model-00001-of-00001.bin"],
        ),
        ({"a-Q8_0.gguf": 5, "a-Q4_0.gguf": 3, "mmproj-F16.gguf": 1}, "gguf", ["a-Q4_0.gguf"]),
        ({"a.gguf": 5}, "gguf", ["a.gguf"]),
        (
            {"a-Q4_0-00001-of-00002.gguf": 5, "a-Q4_0-00002-of-00002.gguf": 5, "a-Q8_0.gguf": 20},
            "gguf",
            ["a-Q4_0-00001-of-00002.gguf", "a-Q4_0-00002-of-00002.gguf"],
        ),
        (
            {"onnx/model.onnx": 1, "onnx/model.onnx_data": 9, "onnx/model_q4.onnx": 3},
            "onnx",
            ["onnx/model.onnx", "onnx/model.onnx_data"],
        ),
        (
            {
                "mlc-chat-config.json": 1,
                "tensor-cache.json": 1,
                "params_shard_0.bin": 5,
                "params_shard_1.bin": 5,
            },
            "mlc",
            ["params_shard_0.bin", "params_shard_1.bin"],
        ),
    ],
)
def test_only_what_is_needed_is_chosen(files: dict[str, int], form: str, weights: list[str]) -> None:
    """One form of the weights with the files that belong to it, and nothing that only lies beside."""
    choice = choose(files | SIDE | OTHER, "someone/model")
    assert choice.form == form
    assert sorted(choice.weights) == weights
    assert not set(choice.files) & set(OTHER)
    if form != "gguf":  # everything else is inside a GGUF file
        assert set(SIDE) <= set(choice.files)


@pytest.mark.parametrize(
    ("wanted", "file"),
    [
        ("Q8_0", "a-Q8_0.gguf"),
        ("q4_k_m", "a-Q4_K_M.gguf"),
        ("a-Q4_0.gguf", "a-Q4_0.gguf"),
        ("", "a-Q4_0.gguf"),
    ],
)
def test_a_gguf_file_is_chosen_by_its_format(wanted: str, file: str) -> None:
    """The format or the file's name says which; without either it is the one that loses least."""
    files = {"a-Q4_0.gguf": 3, "a-Q4_K_M.gguf": 4, "a-Q8_0.gguf": 5, "a-IQ4_NL.gguf": 3}
    assert choose(files, "someone/model", wanted).weights == (file,)


@pytest.mark.parametrize(
    ("files", "wanted", "error", "message"),
    [
        ({"adapter_config.json": 1, "adapter_model.safetensors": 5}, "", LibraryError, "adapter"),
        ({"README.md": 1}, "", LibraryError, "no weights"),
        ({}, "", LibraryError, "no weights"),
        ({"mlc-chat-config.json": 1, "params_shard_0.bin": 1}, "", LibraryError, "not all files"),
        ({"a-Q8_0.gguf": 5}, "Q4_0", InvalidRequestError, "no GGUF files"),
        ({"a-IQ2_S.gguf": 5, "b-IQ2_S.gguf": 5}, "", InvalidRequestError, "several GGUF files"),
        ({"checkpoint.pth": 5}, "", LibraryError, "no weights"),
    ],
)
def test_what_is_no_model_is_refused(
    files: dict[str, int], wanted: str, error: type[HobError], message: str
) -> None:
    """A repository without a model that Hob reads says why."""
    with pytest.raises(error, match=message):
        choose(files, "someone/model", wanted)
