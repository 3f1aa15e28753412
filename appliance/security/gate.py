"""Everything the gate knows: the owner, signed-in browsers, keys, and our own names."""

from dataclasses import dataclass

from appliance.config import Settings
from appliance.security.hosts import AllowedHosts
from appliance.security.keys import Keys
from appliance.security.owner import Owner
from appliance.security.sessions import Sessions
from appliance.store import Store


@dataclass(frozen=True)
class Gate:
    """The parts of security that share one store. Made once, by the application."""

    owner: Owner
    sessions: Sessions
    keys: Keys
    hosts: AllowedHosts

    @classmethod
    def open(cls, settings: Settings, store: Store) -> "Gate":
        """Security as the settings say, on this store."""
        return cls(
            Owner(store, code=settings.setup_code),
            Sessions(store),
            Keys(store),
            AllowedHosts(settings.name, settings.allowed_hosts),
        )
