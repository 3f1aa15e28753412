"""Which layers see a window of the last tokens only: `layer_types` of config.json, or what stands for it."""

from collections.abc import Sequence
from typing import Any

from builder.compile.families.fields import Fields

SLIDING, FULL = "sliding_attention", "full_attention"


def periodic(layers: int, period: int) -> list[str]:
    """Windows in all layers but every `period`th."""
    return [FULL if (index + 1) % period == 0 else SLIDING for index in range(layers)]


def layer_types(config: Fields, default: Sequence[str]) -> list[str]:
    """The kind of attention of each layer; `default` where the file does not tell.

    Raises:
        FormatError: not one known kind for each layer.
    """
    types = config.get("layer_types", list(default))
    known = isinstance(types, list) and all(kind in (SLIDING, FULL) for kind in types)
    if not known or len(types) != len(default):
        raise config.wrong("layer_types", f"is not {SLIDING!r} or {FULL!r} for each of {len(default)} layers")
    return list(types)


def windows(types: Sequence[str], window: int, context: int) -> tuple[int | None, ...]:
    """The window of each layer; none where it would never cut anything off."""
    return tuple(window if kind == SLIDING and window < context else None for kind in types)


def window_fields(source: Fields, default: Sequence[str]) -> dict[str, Any]:
    """What `model_config` says of windows that a config.json turns on by `use_sliding_window`; else nothing.

    Args:
        default: the kinds of the layers where the file does not list them.
    """
    if not source.flag("use_sliding_window", False) or not source.has("sliding_window"):
        return {}
    types = layer_types(source, default)
    return (
        {"sliding_window": source.integer("sliding_window"), "layer_types": types} if SLIDING in types else {}
    )


def read_windows(config: Fields, layers: int) -> tuple[int | None, ...]:
    """The window of each layer by `window_fields`."""
    types = layer_types(config, [FULL] * layers)
    if SLIDING not in types:
        return (None,) * layers
    return windows(types, config.integer("sliding_window"), config.integer("context_window_size"))
