"""Who does what is asked: one row per request of `messages`."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from appliance.admin import messages, power, updates
from appliance.admin.server import Tell

HANDLERS: Final[dict[type, Callable[[Any, Tell], Awaitable[messages.Final]]]] = {
    messages.Reboot: power.reboot,
    messages.PowerOff: power.power_off,
    messages.DescribeUpdates: updates.describe,
    messages.InspectUpdate: updates.inspect,
    messages.InstallUpdate: updates.install,
    messages.GoBack: updates.go_back,
}
