"""Who does what is asked: one row per request of `messages`."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from appliance.admin import messages, power, settings, updates, wifi
from appliance.admin.server import Tell

HANDLERS: Final[dict[type, Callable[[Any, Tell], Awaitable[messages.Final]]]] = {
    messages.Reboot: power.reboot,
    messages.PowerOff: power.power_off,
    messages.DescribeDevice: settings.describe,
    messages.SetHostName: settings.set_host_name,
    messages.SetSshKeys: settings.set_ssh_keys,
    messages.SetTimeZone: settings.set_time_zone,
    messages.SetClock: settings.set_clock,
    messages.ScanWifi: wifi.scan,
    messages.SetWifi: wifi.join,
    messages.ForgetWifi: wifi.forget,
    messages.DescribeUpdates: updates.describe,
    messages.InspectUpdate: updates.inspect,
    messages.InstallUpdate: updates.install,
    messages.GoBack: updates.go_back,
}

QUESTIONS: Final[frozenset[type]] = frozenset(
    {messages.DescribeDevice, messages.DescribeUpdates, messages.InspectUpdate}
)
"""Requests that change nothing."""
