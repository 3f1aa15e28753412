"""How one model is spoken to: messages in, token ids out, and what ends an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from appliance.chat.controls import Controls, library_errors, renamed
from appliance.chat.detokenise import Detokenizer, Vocabulary
from appliance.domain import Message
from appliance.errors import InvalidRequestError, ModelLoadError
from builder.compile.mlc import TOKENIZER, read_config, read_json
from builder.compile.template import ChatTemplate, Conversation, read_tokenizer_config, special_tokens
from builder.errors import BuildError, FormatError

HINT = "The model's directory is damaged or incomplete; add the model again."


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How one model is spoken to. Made by `load`; immutable and safe to share between threads.

    Attributes:
        vocab_size: rows of the model's embedding; ids are below it.
        stop_token_ids: tokens that end an answer.
        stop_strings: texts that end an answer.
    """

    vocab_size: int
    stop_token_ids: list[int]
    stop_strings: list[str]
    _vocabulary: Vocabulary
    _tokenizer: Tokenizer
    _template: ChatTemplate | Conversation
    _prefix: tuple[int, ...]
    _controls: Controls

    @classmethod
    def load(cls, directory: Path) -> "ChatFormat":
        """Read tokenizer and template of an MLC directory. Takes as long as parsing `tokenizer.json`.

        The checkpoint's own template is used if there is one, else `conv_template`.

        Raises:
            ModelLoadError: a file is missing or damaged; names it.
        """
        try:
            config = read_config(directory)
            raw = read_json(directory / TOKENIZER)
            record = config.get("conv_template")
            conversation = Conversation.from_json(record) if isinstance(record, dict) else None
            template: ChatTemplate | Conversation | None = ChatTemplate.find(directory)
            prefix: tuple[int, ...] = ()
            if template is None:
                if conversation is None:
                    raise FormatError(f"{directory}: there is neither a chat template nor a conv_template")
                template, prefix = conversation, conversation.system_prefix_token_ids
            vocabulary = Vocabulary.from_json(raw)
            eos = special_tokens(read_tokenizer_config(directory)).get("eos_token")
            added = {token["content"]: token["id"] for token in raw.get("added_tokens", ())}
            controls = Controls.of(raw.get("added_tokens", ()), _words(template))
            tokenizer = renamed(raw, controls.names, added)
        except BuildError as error:
            raise ModelLoadError(str(error), hint=error.hint or HINT) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelLoadError(f"{directory / TOKENIZER} is malformed: {error!r}", hint=HINT) from error
        # Only tokens set apart from ordinary text: MLC's default for eos_token_id is 2 in every vocabulary.
        stop_ids = _ids(config.get("eos_token_id")) & set(added.values())
        stop_strings = []
        if conversation:
            stop_ids |= set(conversation.stop_token_ids)
            stop_ids |= {added[text] for text in conversation.stop_str if text in added}
            stop_strings = [text for text in conversation.stop_str if text and text not in added]
        if eos in added:
            stop_ids.add(added[eos])
        return cls(
            vocab_size=config["vocab_size"],
            stop_token_ids=sorted(stop_ids),
            stop_strings=stop_strings,
            _vocabulary=vocabulary,
            _tokenizer=tokenizer,
            _template=template,
            _prefix=prefix,
            _controls=controls,
        )

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt that makes the model answer `messages`, with BOS where the template has it.

        Raises:
            InvalidRequestError: the template refuses the messages (order of roles, for example).
        """
        turns = [
            {
                "role": message.role,
                "content": self._controls.hide(message.role, _well_formed(message.content)),
            }
            for message in messages
        ]
        try:
            text = self._template.render(turns)
        except FormatError as error:
            raise InvalidRequestError(str(error), param="messages") from error
        ids = [*self._prefix, *self._encode(self._controls.settle(text))]
        if ids and max(ids) >= self.vocab_size:
            raise ModelLoadError(
                f"the tokenizer gives id {max(ids)}, the model has {self.vocab_size} tokens",
                hint="tokenizer.json and the weights belong to different models; add the model again.",
            )
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the tokens of ordinary text: no template, no BOS, no special token whatever it contains."""
        return self._encode(_well_formed(text))

    def detokenizer(self) -> Detokenizer:
        """A new stream of text."""
        return Detokenizer(self._vocabulary)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; a special token's own spelling; b"" for an unused id."""
        return self._vocabulary.pieces.get(token_id, b"")

    def _encode(self, text: str) -> list[int]:
        try:
            with library_errors():
                ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except FormatError as error:
            raise ModelLoadError(str(error), hint=HINT) from error
        return ids


def _words(template: ChatTemplate | Conversation) -> str:
    """Everything a template may write by itself."""
    if isinstance(template, ChatTemplate):
        return template.source
    parts = (template.system_template, template.role_content_sep, template.role_empty_sep)
    return "\n".join([*parts, *template.roles.values(), *template.role_templates.values(), *template.seps])


def _ids(value: int | list[int] | None) -> set[int]:
    """Token ids of a field that holds none, one or several."""
    if value is None:
        return set()
    return set(value) if isinstance(value, list) else {value}


def _well_formed(text: str) -> str:
    """The text with lone surrogates, which no encoding can carry, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
