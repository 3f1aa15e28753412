"""Taking secrets out of `hob.toml`, and leaving everything else as its owner wrote it."""

import json
import re
import tomllib

SECRETS = ("password", "setup_code")

TAKEN = "# {key} was here: Hob keeps it now. To change it, write it again."


def scrub(text: str) -> str:
    """The file without the Wi-Fi password and the set-up code; the very same text where it has none.

    Lines with a secret become a remark. Where that would not do (the secret stands in the middle of a line,
    or on several), the file is written anew from what it says, without its comments.

    Raises:
        tomllib.TOMLDecodeError: it is not TOML.
    """
    table = tomllib.loads(text)
    bare = _without(table)
    if bare == table:
        return text
    lines = [_line(line) for line in text.splitlines()]
    shorter = "\n".join(lines) + "\n"
    try:
        if tomllib.loads(shorter) == bare and not _mentions(shorter, table):
            return shorter
    except tomllib.TOMLDecodeError:
        pass
    return _written(bare)


def _line(line: str) -> str:
    match = re.match(r"""\s*["']?(\w+)["']?\s*=""", line)
    return TAKEN.format(key=match[1]) if match and match[1] in SECRETS else line


def _without(table: dict[str, object]) -> dict[str, object]:
    """A table, and those in it, without the secrets."""
    return {
        key: _without(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if key not in SECRETS
    }


def _mentions(text: str, table: dict[str, object]) -> bool:
    """Whether a secret of `table` still stands somewhere in `text`, in a comment perhaps."""
    for key, value in table.items():
        if isinstance(value, dict) and _mentions(text, value):
            return True
        if key in SECRETS and isinstance(value, str) and value and value in text:
            return True
    return False


def _written(table: dict[str, object]) -> str:
    """A table in TOML: plain values first, then the tables in it."""
    lines = ["# Settings of this Hob. It took the secrets over and wrote the rest anew."]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{_key(key)}]", *(f"{_key(k)} = {_value(v)}" for k, v in value.items())]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _value(value: object) -> str:
    """A value in TOML. JSON's strings are TOML's basic strings, but for DEL, which TOML wants escaped."""
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str | bool | int | float):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(str(value), ensure_ascii=False)  # dates: nothing that Hob reads
