"""The one way in which the service has things done that only root may do.

The service runs without rights. What the owner wants done to the device itself (restart it, name it, join it
to a Wi-Fi network, update it) it asks of a small program of root's over a Unix socket, in the closed
vocabulary of `messages`. There is no message that carries a command or anything else to be run.

    from appliance.admin import client
    if client.present():
        device = await client.ask(DescribeDevice(), Device)
"""
