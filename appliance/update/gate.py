"""The question that a new system must answer: `python -m appliance.update.gate`, run by hob-health.service.

It runs in a boot on trial only. The model that comes with the system is asked through the service, as any
program would ask. An answer makes this slot the one that boots; without one the reason is kept, this process
fails, and systemd restarts the device, which leads back to the slot before. A slot that was good once is not
questioned again, so two bad slots never send a device back and forth: it stays on the one that answered last.
"""

import asyncio
import http.client
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Final

from appliance.config import load_settings
from appliance.errors import HobError
from appliance.shipped import GUIDE
from appliance.update import install

log = logging.getLogger(__name__)

QUESTION: Final = "Who are you?"
LENGTH: Final = 24
"""Tokens of the answer: enough to see that the model computes, and no more."""

PATIENCE: Final = 480.0
"""Seconds until there must be an answer. A small board reads its model from a slow card."""

INSISTENCE: Final = 90.0
"""Seconds for which the service may say no before it is believed; until then it may still be starting."""

PAUSE: Final = 2.0
ANSWER_SECONDS: Final = 120.0


class RefusedError(Exception):
    """The service answered, and said no."""


def ask(port: int) -> str:
    """The model's answer.

    Raises:
        RefusedError: the service gave an error, or an answer without words.
        OSError, http.client.HTTPException: there is no service yet.
    """
    wanted = {
        "model": GUIDE,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": LENGTH,
        "temperature": 0,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(wanted), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        body = response.read(2**20)
    finally:
        connection.close()
    try:
        told = json.loads(body)
        if response.status != 200:
            raise RefusedError(str(told["error"]["message"]))
        answer = str(told["choices"][0]["message"]["content"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RefusedError(f"the service answered {response.status}, and nothing that can be read") from error
    if not answer.strip():
        raise RefusedError(f"{GUIDE} answered without a word")
    return answer


def wait_for_answer(
    asked: Callable[[], str],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Ask until there is an answer; "" then, else why there is none.

    Gives up when the service has only said no for `INSISTENCE` seconds, or after `PATIENCE` in any case.
    """
    begun, refused_since, reason = clock(), None, "the service did not start"
    while True:
        try:
            answer = asked()
        except RefusedError as error:
            reason = str(error)
            refused_since = clock() if refused_since is None else refused_since
            if clock() - refused_since >= INSISTENCE:
                return reason
        except (OSError, http.client.HTTPException) as error:
            if refused_since is not None:
                reason = f"the service ended: {error}"
            refused_since = None
        else:
            log.info("the model answered: %s", answer)
            return ""
        if clock() - begun >= PATIENCE:
            return reason
        sleep(PAUSE)


def main() -> int:
    """Decide about the slot that runs. Exit status 1: back to the one before."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        port = load_settings().port
        reason = wait_for_answer(lambda: ask(port))
        if not reason:
            asyncio.run(install.accept())
    except HobError as error:
        reason = error.message
    if not reason:
        return 0
    log.error("the new system is given up: %s", reason)
    asyncio.run(install.give_up(reason))
    return 1


if __name__ == "__main__":
    sys.exit(main())
