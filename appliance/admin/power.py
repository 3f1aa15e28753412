"""Restarting the device and switching it off."""

from appliance.admin.messages import Done, PowerOff, Reboot
from appliance.admin.program import run
from appliance.admin.server import Tell


async def reboot(request: Reboot, tell: Tell) -> Done:
    """Begin to restart. Services end in order: open answers are kept as far as they have come."""
    await run("systemctl", "--no-block", "reboot")
    return Done(text="The device restarts.")


async def power_off(request: PowerOff, tell: Tell) -> Done:
    """Begin to switch off."""
    await run("systemctl", "--no-block", "poweroff")
    return Done(text="The device switches off.")
