"""Finding Hob on the LAN: multicast DNS (RFC 6762) and DNS service discovery (RFC 6763).

announcer = announce.Announcer(settings.name, port, on_host=gate.hosts.announced)
task = asyncio.create_task(announcer.run())  # cancel it to say goodbye
found = await browse.browse(seconds=3)

Nothing is imported here: zeroconf takes a tenth of a second and 4 MB that only a LAN is worth.
"""
