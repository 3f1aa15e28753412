"""`python -m appliance.admin`: what hob-admin.service runs."""

import asyncio
import logging

from appliance.admin.handlers import HANDLERS, QUESTIONS
from appliance.admin.server import Server, allowed_uids, inherited

USERS = ("hob",)
"""Users besides root who may ask: the service's own."""


def main() -> None:
    """Serve the socket that systemd passed until there is nothing to do."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with inherited() as listener:
        asyncio.run(Server(HANDLERS, allowed_uids(USERS), questions=QUESTIONS).run(listener))


if __name__ == "__main__":
    main()
