"""Command-line options that are settings: names, help and defaults come from the table of settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic_core import PydanticUndefined

from appliance.config import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


def settings_options(*names: str) -> Callable[[Command], Command]:
    """Give a command one option per setting. Values are passed on as text: `load_settings` checks them.

    An option that is not given is None, so that the environment and the files decide.
    """

    def decorate(command: Command) -> Command:
        for name in reversed(names):  # click shows the last one first
            command = _option(name)(command)
        return command

    return decorate


def _option(name: str) -> Callable[[Command], Command]:
    field = Settings.model_fields[name]
    flag = f"--{name.replace('_', '-')}"
    text = field.description or ""
    if field.annotation is bool:
        return click.option(flag, is_flag=True, default=None, help=text)
    if field.default is not PydanticUndefined:
        text = f"{text}  [default: {field.default}]"
    return click.option(flag, default=None, help=text, metavar=_metavar(field.annotation))


def _metavar(annotation: object) -> str:
    """What stands for the value in the help."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if annotation is int:
        return "NUMBER"
    return "FOLDER" if annotation is Path else "TEXT"
