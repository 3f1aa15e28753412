"""Chat templates: how they render, and what conv_template is made of them."""

import json
from pathlib import Path

import pytest

from builder.compile.conversation import conv_template, derive
from builder.compile.template import ChatTemplate, Conversation, Turn
from builder.errors import FormatError

# The formats as their models define them, each written as a template of our own.
LLAMA_3 = """{{ bos_token }}{% for m in messages %}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""
LLAMA_32 = """{{ bos_token }}
{%- if strftime_now is defined %}{% set date = strftime_now("%d %b %Y") %}
{%- else %}{% set date = "1 Jan" %}{% endif %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = "" %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + date + "\n\n" + system + "<|eot_id|>" }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""
CHATML = """{% for m in messages %}{% if loop.first and m.role != 'system' %}
{{ '<|im_start|>system\nYou are Tiny.<|im_end|>\n' }}{% endif %}
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
ZEPHYR = """{% for m in messages %}
{% if m.role == 'assistant' %}
{% generation %}{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}{% endgeneration %}
{% else %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
LLAMA_2 = """{% if messages[0].role == 'system' %}
{% set intro = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}
{% else %}{% set intro = '' %}{% endif %}
{% for m in messages %}
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (intro if loop.first else '') + m.content + ' [/INST]' }}
{%- else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}
{% endfor %}"""
# What follows a question depends on how many there were: beyond what MLC's format can say.
COUNTING = "{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}"

TALK: list[Turn] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
TOKENS = {
    "<s>": 1,
    "</s>": 2,
    "<|begin_of_text|>": 3,
    "<|eot_id|>": 4,
    "<|start_header_id|>": 5,
    "<|im_start|>": 6,
    "<|im_end|>": 7,
}


def compiled(source: str, bos: str = "<s>", eos: str = "</s>") -> ChatTemplate:
    """A template with these two tokens."""
    return ChatTemplate.compile(source, {"bos_token": bos, "eos_token": eos})


def test_rendered_text() -> None:
    """Blocks leave no stray line ends and the special tokens are at hand, as Hugging Face has it."""
    assert compiled(ZEPHYR).render(TALK) == (
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n"
        "<|user|>\nBye</s>\n<|assistant|>\n"
    )
    assert compiled(LLAMA_2).render(TALK) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]"
    )


@pytest.mark.parametrize(
    ("source", "bos", "eos", "name", "stops"),
    [
        (LLAMA_3, "<|begin_of_text|>", "<|eot_id|>", "llama-3", [4]),
        (LLAMA_32, "<|begin_of_text|>", "<|eot_id|>", "llama-3", [4]),
        (CHATML, "<|im_start|>", "<|im_end|>", "chatml", [7]),
        (ZEPHYR, "<s>", "</s>", "tinyllama_v1_0", [2]),
        (LLAMA_2, "<s>", "</s>", "llama-2", [2]),
    ],
    ids=["llama-3", "llama-3.2", "chatml", "zephyr", "llama-2"],
)
def test_known_formats_are_recognised(source: str, bos: str, eos: str, name: str, stops: list[int]) -> None:
    """The object renders what the template renders, has MLC's name for it, and this tokenizer's ids."""
    template = compiled(source, bos, eos)
    record = conv_template(template, TOKENS, bos, [eos])
    assert record["name"] == name
    assert record["stop_token_ids"] == stops
    prefix = bos if record["system_prefix_token_ids"] == [TOKENS[bos]] else ""
    conversation = Conversation.from_json(record)
    for talk in (TALK, TALK[:2]):
        assert prefix + conversation.render(talk) == template.render(talk)


def test_default_system_message() -> None:
    """A default system message of the template becomes the object's."""
    record = conv_template(compiled(CHATML), TOKENS, "<|im_start|>", ["<|im_end|>"])
    assert record["system_message"] == "You are Tiny."
    assert record["seps"] == ["<|im_end|>\n"]
    assert record["system_prefix_token_ids"] is None
    assert Conversation.from_json(record).render(TALK[1:]) == compiled(CHATML).render(TALK[1:])


def test_beyond_the_format() -> None:
    """A template that MLC's format cannot express gives no object of its own; a plain script stands in."""
    assert derive(compiled(COUNTING), "", []) is None
    record = conv_template(compiled(COUNTING), {"</s>": 2}, None, ["</s>"])
    assert (record["name"], record["stop_token_ids"]) == ("plain", [2])
    assert (
        Conversation.from_json(record)
        .render(TALK)
        .endswith("User: Hi\nAssistant: Hello.\nUser: Bye\nAssistant:")
    )


def test_template_without_system_messages() -> None:
    """A template that refuses system messages still gives an object for the rest."""
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + ZEPHYR
    fields = derive(compiled(source), "<s>", ["</s>"])
    assert fields is not None
    assert Conversation.from_json(fields).render(TALK[1:]) == compiled(source).render(TALK[1:])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception('not like this') }}", "not like this"),
        ("{{ messages[0].content / 2 }}", "TypeError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "[Rr]ange"),
        ("{% include 'x' %}", "loader"),
    ],
)
def test_templates_are_confined(source: str, message: str) -> None:
    """A template can neither reach into Python nor change its input; its failures are one-line errors."""
    with pytest.raises(FormatError, match=message):
        compiled(source).render(TALK)


def test_syntax_error() -> None:
    """A template that does not parse is refused with its line."""
    with pytest.raises(FormatError, match="line 2"):
        compiled("\n{% if %}")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "one"}}, "one"),
        ({"tokenizer_config.json": {"chat_template": "one"}, "chat_template.jinja": "two"}, "two"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "tools"},
                        {"name": "default", "template": "one"},
                    ]
                }
            },
            "one",
        ),
        ({"tokenizer_config.json": {}}, None),
        ({}, None),
    ],
)
def test_where_templates_are_found(files: dict[str, object], expected: str | None, tmp_path: Path) -> None:
    """A file of its own goes first, then tokenizer_config.json: one template, or the default of several."""
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    template = ChatTemplate.find(tmp_path)
    assert (template.source if template else None) == expected


def test_names_that_templates_rely_on() -> None:
    """Tools and documents are none rather than undefined; today's date can be asked for."""
    source = "{{ tools is none }} {{ documents is none }} {{ strftime_now('%Y') }} {{ {'ä': '<'} | tojson }}"
    template = ChatTemplate.compile(source, {}, lambda pattern: f"[{pattern}]")
    assert template.render(TALK) == 'True True [%Y] {"ä": "<"}'


def test_special_tokens_given_as_objects(tmp_path: Path) -> None:
    """Special tokens are found whether written as text or as an object."""
    config = {
        "chat_template": "{{ bos_token }}{{ eos_token }}",
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.find(tmp_path)
    assert template is not None
    assert template.render(TALK) == "<s></s>"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"roles": {"user": "U"}}, "roles"),
        ({"roles": None}, "roles"),
        ({"roles": {"user": 1, "assistant": "A"}}, "roles"),
        ({"seps": []}, "seps"),
        ({"seps": "x"}, "seps"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"add_role_after_system_message": "no"}, "add_role_after_system_message"),
    ],
)
def test_malformed_conv_template(changes: dict[str, object], field: str) -> None:
    """A conv_template of the wrong shape is refused by field."""
    with pytest.raises(FormatError, match=rf"conv_template\.{field}"):
        Conversation.from_json({"roles": {"user": "U", "assistant": "A"}} | changes)
