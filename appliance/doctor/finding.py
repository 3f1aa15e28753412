"""What an examination finds."""

from typing import Literal

from appliance.domain import Frozen

Status = Literal["ok", "warning", "problem"]


class Finding(Frozen):
    """One thing looked at: how it is, and what to do about it (empty when nothing)."""

    check: str
    status: Status
    detail: str
    hint: str = ""
