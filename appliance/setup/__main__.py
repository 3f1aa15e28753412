"""`python -m appliance.setup`: run by hob-setup.service at every start and when the settings have changed."""

import logging

from appliance.setup import apply, clock, takeover
from appliance.setup.places import Places, here
from appliance.setup.state import load, write

log = logging.getLogger("hob-setup")


def set_up(places: Places) -> None:
    """Clock, settings, files, system: in this order, for each needs the one before."""
    try:
        if behind := clock.advance(places.root / "var"):
            log.info("the clock was %.0f seconds behind what this device has seen", behind)
    except OSError as error:
        log.error("the clock cannot be set: %s", error)
    apply.keep_machine_id(places)
    state = apply.complete(places, takeover.take_over(places, load(places.state)))
    apply.write_files(places, state)
    apply.host_keys(places, state)
    apply.tell_system(places, state)
    takeover.report(places, apply.report(state))
    if text := apply.note(state):
        write(places.notes / "settings.txt", text.encode(), 0o644)
    else:
        (places.notes / "settings.txt").unlink(missing_ok=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    set_up(here())
