"""What people type as a model's source, and the names that are made of it."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.errors import InvalidRequestError
from appliance.library.manifest import checked_name
from appliance.library.source import Hub, Local, Peer, Source, Web, model_name, parse


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("someone/model", Hub("someone/model")),
        ("someone/model@v1.0", Hub("someone/model", "v1.0")),
        ("someone/model@refs/pr/3", Hub("someone/model", "refs/pr/3")),
        ("someone/model:Q4_0", Hub("someone/model", "", "Q4_0")),
        ("someone/model@main:model-q8_0.gguf", Hub("someone/model", "main", "model-q8_0.gguf")),
        ("hf:someone/model", Hub("someone/model")),
        ("https://huggingface.co/someone/model", Hub("someone/model")),
        ("https://hf.co/someone/model/tree/v1.0", Hub("someone/model", "v1.0")),
        (
            "https://huggingface.co/someone/model/blob/main/a.gguf",
            Web("https://huggingface.co/someone/model/resolve/main/a.gguf"),
        ),
        ("https://example.org/a.gguf?download=true", Web("https://example.org/a.gguf?download=true")),
        ("http://192.168.1.5/a.gguf", Web("http://192.168.1.5/a.gguf")),
        ("tiny@hob-2.local", Peer("tiny", "hob-2.local")),
        ("tiny@0123abcd@hob-2.local:8080", Peer("tiny@0123abcd", "hob-2.local:8080")),
        ("tiny@192.168.1.5", Peer("tiny", "192.168.1.5")),
        ("tiny@[fe80::1]:8080", Peer("tiny", "[fe80::1]:8080")),
        ("someone/model@nas:8080", Peer("someone/model", "nas:8080")),
        ("  someone/model ", Hub("someone/model")),
    ],
)
def test_what_a_source_means(text: str, source: Source) -> None:
    """Each way to name a source is understood as what it is."""
    assert parse(text) == source


def test_what_exists_is_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or folder comes before a repository of the same name, which hf: still reaches."""
    (tmp_path / "someone" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse("someone/model") == Local(Path("someone/model"))
    assert parse("hf:someone/model") == Hub("someone/model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("/nowhere/at/all", "no file or folder"),
        ("model", "no file or folder"),
        ("hf:model", "not a Hugging Face id"),
        ("hf:../../etc/passwd", "not a Hugging Face id"),
        ("someone/model@a b", "not a Hugging Face id"),
        ("http://example.org/a.gguf", "not encrypted"),
        ("https://user:secret@example.org/a.gguf", "password"),
        ("https://example.org", "names no file"),
        ("a\0b", "empty"),
    ],
)
def test_what_is_no_source(text: str, message: str) -> None:
    """What cannot be a source is refused with the ways that there are, and never shows a password."""
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parse(text)
    assert caught.value.hint
    assert "secret" not in caught.value.explanation


@given(st.one_of(st.text(max_size=300), st.from_regex(r"(https?://|hf:|~|[a-z]+@)[\x00-\xff]{0,40}")))
@example("~nobody-of-that-name/model")
@example("http://[")
@example("x" * 5000)
def test_whatever_is_typed(text: str) -> None:
    """Anything is a source or is refused; a name made of it is always one that a model may have."""
    try:
        found = parse(text)
    except InvalidRequestError:
        return
    title = getattr(found, "repository", "") or getattr(found, "model", "") or "x"
    checked_name(model_name(title, "q4f16_1", converted=True))


@pytest.mark.parametrize(
    ("title", "quantisation", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "q4f16_1", "SmolLM2-135M-Instruct-q4f16_1"),
        ("mlc-ai/Llama-3.2-1B-Instruct-q4f16_1-MLC", "", "Llama-3.2-1B-Instruct-q4f16_1"),
        ("smollm2-135m-instruct-Q4_0.gguf", "q4f16_1", "smollm2-135m-instruct-q4f16_1"),
        ("Llama-3.2-1B.Q4_K_M.gguf", "q4f32_1", "Llama-3.2-1B-q4f32_1"),
        ("someone/Model-GGUF", "q4f16_1", "Model-q4f16_1"),
        ("My model (v2)", "", "My-model-v2"),
        ("../..", "", "model"),
        ("x" * 300, "", "x" * 90),
    ],
)
def test_names_made_of_sources(title: str, quantisation: str, name: str) -> None:
    """A name is what people call the model, its packing left out, with the format it has here."""
    assert model_name(title, quantisation, converted=bool(quantisation)) == name
