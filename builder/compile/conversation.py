"""Find the `conv_template` of a checkpoint: watch its own chat template at work, or go by its special tokens.

Hob itself renders the checkpoint's own template whenever there is one; the object made here is what other
readers of the MLC format use.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from builder.compile.template import ChatTemplate, Conversation, Turn
from builder.errors import FormatError

SYSTEM, USER, ASSISTANT, NEXT = "Hobsystem", "Hobuser", "Hobassistant", "Hobnext"
# MLC always renders the system block. Where the checkpoint's template has no default message, an empty block
# would be stranger to the model than a short ordinary one.
DEFAULT_SYSTEM = "You are a helpful assistant."

# By a token that only this format has. Values are MLC-LLM's registered templates of that name.
KNOWN: Mapping[str, tuple[str, dict[str, Any]]] = {
    "<|start_header_id|>": (
        "llama-3",
        {
            "system_template": "<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>",
            "system_message": "You are a helpful, respectful and honest assistant.",
            "roles": {"user": "<|start_header_id|>user", "assistant": "<|start_header_id|>assistant"},
            "seps": ["<|eot_id|>"],
            "role_content_sep": "<|end_header_id|>\n\n",
            "role_empty_sep": "<|end_header_id|>\n\n",
            "stop_str": ["<|end_of_text|>", "<|eot_id|>"],
        },
    ),
    "<|im_start|>": (
        "chatml",
        {
            "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
            "system_message": DEFAULT_SYSTEM,
            "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
            "seps": ["<|im_end|>\n"],
            "role_content_sep": "\n",
            "role_empty_sep": "\n",
            "stop_str": ["<|im_end|>"],
        },
    ),
}
# For checkpoints without template and without known tokens: base models, which continue a script.
PLAIN: dict[str, Any] = {
    "system_template": "{system_message}\n\n",
    "system_message": "A conversation between a user and a helpful assistant.",
    "roles": {"user": "User", "assistant": "Assistant"},
    "seps": ["\n"],
    "role_content_sep": ": ",
    "role_empty_sep": ":",
    "stop_str": ["\nUser:"],
}
# MLC-LLM's names by what precedes a user's message.
NAMES: Mapping[str, str] = {
    "<|start_header_id|>user<|end_header_id|>\n\n": "llama-3",
    "<|im_start|>user\n": "chatml",
    "<|user|>\n": "tinyllama_v1_0",
    "[INST] ": "llama-2",
}


def conv_template(
    template: ChatTemplate | None, tokens: Mapping[str, int], bos: str | None, stops: Sequence[str]
) -> dict[str, Any]:
    """Return the complete `conv_template` object of a checkpoint.

    Args:
        template: the checkpoint's chat template, if it has one.
        tokens: ids of the special tokens by text; all ids in the result come from here.
        bos: the token that begins every text, None where the checkpoint has none.
        stops: special tokens that end an answer, from the checkpoint's configuration.
    """
    if template and bos and _begins_turns(template, bos):
        bos = None
    fields = derive(template, bos or "", stops) if template else None
    if fields is None:
        name, fields = next((KNOWN[token] for token in KNOWN if token in tokens), ("plain", PLAIN))
        starts_with_bos = bos in tokens
    else:
        user = fields["roles"]["user"] + fields["role_content_sep"]
        name = NAMES.get(user.removeprefix(bos or ""), "custom")  # Llama 2 begins every question with BOS
        starts_with_bos = fields.pop("starts_with_bos")
    stop_str = [text for text in fields["stop_str"] if text in tokens or name == "plain"]
    stop_str += [text for text in stops if text not in stop_str]
    return {
        "name": name,
        "system_template": fields["system_template"],
        "system_message": fields["system_message"],
        "system_prefix_token_ids": [tokens[bos]] if bos and starts_with_bos else None,
        "add_role_after_system_message": fields.get("add_role_after_system_message", True),
        "roles": fields["roles"],
        "role_templates": {
            "user": "{user_message}",
            "assistant": "{assistant_message}",
            "tool": "{tool_message}",
        },
        "messages": [],
        "seps": fields["seps"],
        "role_content_sep": fields["role_content_sep"],
        "role_empty_sep": fields["role_empty_sep"],
        "stop_str": stop_str,
        "stop_token_ids": sorted(tokens[text] for text in stop_str if text in tokens),
        "strip_reasoning_in_history": False,
        "function_string": "",
        "use_function_calling": False,
    }


def _begins_turns(template: ChatTemplate, bos: str) -> bool:
    """Whether BOS is simply the token that begins every turn, as in SmolLM2's ChatML."""
    pieces = _pieces(template, "", (USER,))
    return pieces is not None and bos in pieces[-1]


def end_of_turn(template: ChatTemplate, bos: str, tokens: Iterable[str]) -> str | None:
    """The one of the special `tokens` that the template puts behind an answer; None where it puts none there.

    Not every configuration lists it among those that end a text, and without it the model talks on for both.
    """
    pieces = _pieces(template, bos, (USER, ASSISTANT, NEXT))
    after = pieces[2].lstrip() if pieces else ""
    return max((token for token in tokens if token and after.startswith(token)), key=len, default=None)


def derive(template: ChatTemplate, bos: str, stops: Sequence[str]) -> dict[str, Any] | None:
    """Take a chat template apart by rendering marked conversations.

    Returns:
        Fields of `Conversation` (and `starts_with_bos`) that give the same text as the template for every
        probe, or None when MLC's format cannot say what the template does.
    """
    for candidate in _candidates(template, bos, stops):
        if _same(template, candidate, bos):
            return candidate
    return None


def _candidates(template: ChatTemplate, bos: str, stops: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield readings of what stands between the messages, the most natural first."""
    full = _pieces(template, bos, (SYSTEM, USER, ASSISTANT, NEXT))
    bare = _pieces(template, bos, (USER, ASSISTANT, NEXT))
    if bare is None:
        return
    if full is None:  # no system messages: whatever precedes the user is the user's header
        full = ["", bare[0], *bare[1:]]
    before_system, before_user, to_assistant, to_user, to_answer = full
    common = _common_prefix(to_assistant, to_answer)
    content_sep, empty_sep = to_assistant[len(common) :], to_answer[len(common) :]
    for user in _user_headers(before_user, to_user, bare[0], stops):
        if not (to_user.endswith(user) and user.endswith(content_sep)):
            continue
        after_assistant = to_user[: len(to_user) - len(user)]
        if after_assistant and common.startswith(after_assistant):
            seps, assistant = [after_assistant], common[len(after_assistant) :]
        else:
            seps, assistant = ["", after_assistant], common
        headed = before_user.endswith(user)
        system_end = before_user[: len(before_user) - len(user)] if headed else before_user
        default = _between(bare[0], before_system, before_user)
        if before_system + system_end == "":
            system, default = "{system_message}", ""
        else:
            system = f"{before_system}{{system_message}}{system_end}"
        yield {
            "system_template": system,
            "system_message": DEFAULT_SYSTEM if default is None else default,
            "add_role_after_system_message": headed,
            "roles": {"user": user[: len(user) - len(content_sep)], "assistant": assistant},
            "seps": seps,
            "role_content_sep": content_sep,
            "role_empty_sep": empty_sep,
            "stop_str": [stop for stop in stops if stop in to_user],
            "starts_with_bos": bool(bos) and template.render(_talk((USER,))).startswith(bos),
        }


def _user_headers(before_user: str, to_user: str, bare: str, stops: Sequence[str]) -> Iterator[str]:
    """Yield what may be the header of a user's message, given the text before it in three places."""
    for stop in stops:  # a turn usually ends with a stop token and white space; the header is what follows
        if stop in to_user:
            yield to_user[to_user.rindex(stop) + len(stop) :].lstrip()
    yield _common_prefix(before_user[::-1], to_user[::-1])[::-1]
    yield bare


def _common_prefix(left: str, right: str) -> str:
    """The longest text both begin with."""
    pairs = zip(left, right, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return left[:same]


def _between(text: str, before: str, after: str) -> str | None:
    """What `text` has between `before` and `after`; None if it does not consist of them."""
    if len(text) < len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
        return None
    return text[len(before) : len(text) - len(after)]


def _talk(contents: Sequence[str]) -> list[Turn]:
    """A conversation of these contents; `SYSTEM` may come first, then user and assistant in turns."""
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": "system" if text == SYSTEM else next(roles), "content": text} for text in contents]


def _pieces(template: ChatTemplate, bos: str, contents: Sequence[str]) -> list[str] | None:
    """Render a conversation and return what stands around its contents, without a leading BOS."""
    try:
        text = template.render(_talk(contents)).removeprefix(bos)
    except FormatError:
        return None
    pieces = []
    for content in contents:
        if text.count(content) != 1:
            return None
        before, text = text.split(content)
        pieces.append(before)
    return [*pieces, text]


def _same(template: ChatTemplate, fields: Mapping[str, Any], bos: str) -> bool:
    """Whether both ways give the same text, with and without system message, short and long."""
    conversation = Conversation.from_json(fields)
    prefix = bos if fields["starts_with_bos"] else ""
    probes = [(SYSTEM, USER), (SYSTEM, USER, ASSISTANT, NEXT, ASSISTANT, USER)]
    if fields["system_message"] != DEFAULT_SYSTEM:
        probes += [(USER,), (USER, ASSISTANT, NEXT)]
    if fields["system_template"] == "{system_message}":
        probes = [probe for probe in probes if SYSTEM not in probe]
    try:
        return all(
            template.render(_talk(probe)) == prefix + conversation.render(_talk(probe)) for probe in probes
        )
    except FormatError:
        return False
