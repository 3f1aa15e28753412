"""Chat templates: a list of messages becomes the text a model was trained to continue.

Two kinds occur in a model directory. `ChatTemplate` is the checkpoint's own Jinja template with the
conventions of Hugging Face (https://huggingface.co/docs/transformers/chat_templating). `Conversation` is the
`conv_template` object of `mlc-chat-config.json`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from builder.compile.mlc import read_json
from builder.errors import FormatError

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_TEMPLATE = 2**20

Turn = Mapping[str, str]  # {"role": …, "content": …}


class _Generation(jinja2.ext.Extension):
    """Accepts `{% generation %}`, which marks the assistant's words for training, and renders its body."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    """`raise_exception` in templates."""
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """The `tojson` filter without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _environment(today: Callable[[str], str] | None) -> jinja2.Environment:
    """A sandbox: templates come with downloaded models, so they get no attribute access and no I/O."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
        autoescape=False,  # the output is a prompt, not HTML
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    if today:
        environment.globals["strftime_now"] = today
    return environment


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A compiled Jinja chat template and the special tokens it may name.

    Attributes:
        source: the template's text.
        special: `bos_token`, `eos_token`, … as the tokenizer's configuration gives them.
    """

    source: str
    special: Mapping[str, str]
    _template: jinja2.Template = field(repr=False, compare=False)

    @classmethod
    def compile(
        cls, source: str, special: Mapping[str, str], today: Callable[[str], str] | None = None
    ) -> "ChatTemplate":
        """Compile a template.

        Args:
            today: formats the present date for templates that ask (`strftime_now`); None hides the function.

        Raises:
            FormatError: a syntax error; names the line.
        """
        try:
            return cls(source, special, _environment(today).from_string(source))
        except jinja2.TemplateSyntaxError as error:
            raise FormatError(f"chat template, line {error.lineno}: {error.message}") from error

    @classmethod
    def find(cls, directory: Path, *, dated: bool = True) -> "ChatTemplate | None":
        """The template of a model directory: `chat_template.jinja`, else tokenizer_config.json's, else None.

        Args:
            dated: whether the template may ask for today's date.

        Raises:
            FormatError: a file is not readable as what it should be.
        """
        config = read_tokenizer_config(directory)
        source = _source(directory, config)
        if source is None:
            return None
        return cls.compile(source, special_tokens(config), _today if dated else None)

    def render(self, messages: Sequence[Turn], *, answer: bool = True) -> str:
        """Render a conversation; with `answer`, up to where the assistant's next words begin.

        Raises:
            FormatError: the template refuses these messages, or fails on them.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,  # not undefined: templates ask `tools is not none`
                documents=None,
                add_generation_prompt=answer,
                **self.special,
            )
        except jinja2.TemplateError as error:
            raise FormatError(f"the model's chat template says: {error.message}") from error
        except Exception as error:  # a template is foreign code and may raise anything
            raise FormatError(f"the model's chat template fails: {error!r}") from error


def _today(pattern: str) -> str:
    """Today's local date, formatted."""
    return datetime.now().astimezone().strftime(pattern)


def _source(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The text of the template, from its own file or the tokenizer's configuration."""
    file = directory / TEMPLATE_FILE
    if file.is_file():
        if file.stat().st_size > MAX_TEMPLATE:
            raise FormatError(f"{file} is larger than {MAX_TEMPLATE >> 20} MiB")
        try:
            return file.read_text(encoding="utf-8")
        except ValueError as error:
            raise FormatError(f"{file} is not UTF-8: {error}") from error
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in source if {"name", "template"} <= entry.keys()}
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise FormatError(f"{directory / TOKENIZER_CONFIG}: chat_template is not text")
    return source


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; empty when the file is not there.

    Raises:
        FormatError: it does not hold a JSON object.
    """
    file = directory / TOKENIZER_CONFIG
    return read_json(file) if file.is_file() else {}


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The `…_token` entries of a tokenizer configuration, as text."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


@dataclass(frozen=True, slots=True)
class Conversation:
    """MLC's `conv_template`: the parts a prompt is put together from. Unnamed fields are kept out.

    `seps` are what follows a user's and an assistant's message; one entry serves both.
    """

    roles: Mapping[str, str]
    system_template: str = "{system_message}"
    system_message: str = ""
    system_prefix_token_ids: tuple[int, ...] = ()
    add_role_after_system_message: bool = True
    role_templates: Mapping[str, str] = field(default_factory=dict)
    seps: tuple[str, ...] = ("",)
    role_content_sep: str = ""
    role_empty_sep: str = ""
    stop_str: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Conversation":
        """Read the object.

        Raises:
            FormatError: a field has the wrong type; names it.
        """
        values: dict[str, Any] = {}
        for name, kind in _FIELDS.items():
            value = record.get(name)
            if value is None:
                continue
            if not isinstance(value, kind):
                raise FormatError(f"conv_template.{name} is {type(value).__name__}, not {kind.__name__}")
            inner = int if name.endswith("_ids") else str
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            if not all(isinstance(item, inner) for item in items):
                raise FormatError(f"conv_template.{name} holds something other than {inner.__name__}")
            values[name] = tuple(value) if isinstance(value, list) else value
        if not {"user", "assistant"} <= values.get("roles", {}).keys():
            raise FormatError("conv_template.roles must name user and assistant")
        if not values.get("seps", ("",)):
            raise FormatError("conv_template.seps is empty")
        return cls(**values)

    def render(self, messages: Sequence[Turn]) -> str:
        """Render a conversation up to where the assistant's next words begin, as MLC-LLM does.

        `system_prefix_token_ids` are not part of the text; they go before it. System messages take the
        place of the default one, wherever they stand.
        """
        system = [message["content"] for message in messages if message["role"] == "system"]
        text = self.system_template.replace(
            "{system_message}", "\n\n".join(system) if system else self.system_message
        )
        bare_first = bool(text) and not self.add_role_after_system_message
        parts = [text]
        for message in messages:
            role, content = message["role"], message["content"]
            if role == "system":
                continue
            if not bare_first:
                parts.append(self.roles[role] + self.role_content_sep)
            bare_first = False
            placeholder = f"{{{role}_message}}"
            frame = self.role_templates.get(role, placeholder).replace("{function_string}", "")
            parts.append(frame.replace(placeholder, content))
            parts.append(self.seps[-1] if role == "assistant" else self.seps[0])
        parts.append(self.roles["assistant"] + self.role_empty_sep)
        return "".join(parts)


_FIELDS: Mapping[str, type] = {
    "roles": dict,
    "system_template": str,
    "system_message": str,
    "system_prefix_token_ids": list,
    "add_role_after_system_message": bool,
    "role_templates": dict,
    "seps": list,
    "role_content_sep": str,
    "role_empty_sep": str,
    "stop_str": list,
    "stop_token_ids": list,
}
