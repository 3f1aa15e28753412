"""How the last update went, in a sentence for people."""

from datetime import datetime

from appliance.admin.messages import Updates


def story(here: Updates) -> str:
    """What became of the version that was tried last; "" where none was."""
    day = f"{datetime.fromtimestamp(here.at):%Y-%m-%d %H:%M}"
    reason = here.reason[:1].lower() + here.reason[1:]
    if reason and not reason.endswith((".", "!", "?")):
        reason += "."
    match here.state:
        case "writing":
            return f"{here.tried} is being installed."
        case "waiting" if here.on_trial:
            return f"{here.tried} runs on trial, until it has answered a question."
        case "waiting":
            return f"{here.tried} is installed, and will be tried at the next start."
        case "good":
            return f"{here.tried} was installed on {day}, and works."
        case "failed":
            return f"{here.tried} could not be installed on {day}: {reason}"
        case "returned":
            return f"{here.tried} was tried on {day}, and {here.version} runs again: {reason}"
    return ""
