"""Finding Hob on the LAN: multicast DNS (RFC 6762) and DNS service discovery (RFC 6763).

announcer = Announcer(settings.name, port, on_host=gate.hosts.announced)
task = asyncio.create_task(announcer.run())  # cancel it to say goodbye
found = await browse(seconds=3)
"""

from appliance.discovery.announce import Announcer
from appliance.discovery.browse import Found, browse

__all__ = ["Announcer", "Found", "browse"]
