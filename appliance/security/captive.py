"""The set-up network's welcome: a phone that joins it looks for the Internet, and is led to Hob's page
instead.

On that network every name leads to Hob, so the phone's probe (`http://captive.apple.com/…`, `/generate_204`,
…) arrives here under a foreign name. Led to Hob's own address, the phone opens the page by itself. Nothing is
answered under the foreign name but this one redirect, so it is of no use for DNS rebinding.
"""

from ipaddress import IPv6Address, ip_address

from starlette.types import Scope

from appliance.setup.connection import SET_UP_ADDRESS

HOME = f"http://{SET_UP_ADDRESS}/"


def leads_home(scope: Scope) -> bool:
    """Whether a request under a foreign name came in over the set-up network, by our address there."""
    if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"} or not scope.get("server"):
        return False
    try:
        address = ip_address(scope["server"][0])
    except ValueError:  # a Unix socket
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address) == SET_UP_ADDRESS
