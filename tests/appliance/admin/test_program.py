"""Programs of the system that the administration runs."""

import pytest

from appliance.admin.program import run
from appliance.errors import AdminError

pytestmark = pytest.mark.anyio


async def test_the_output_and_the_input() -> None:
    """What goes in and what comes out."""
    assert await run("cat", text="grüß Gott\n") == "grüß Gott\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo first >&2; echo last >&2; exit 3", "sh failed: last"),
        (
            "echo 'Error: no secrets' >&2; echo \"Hint: use 'journalctl -xe'.\" >&2; exit 4",
            "sh failed: Error: no secrets",
        ),
        ("exit 5", "sh failed: status 5"),
    ],
)
async def test_a_failure_has_its_reason(script: str, message: str) -> None:
    """The last line it wrote, but for hints on what to type next."""
    with pytest.raises(AdminError) as caught:
        await run("sh", "-c", script, hint="Look again.")
    assert (caught.value.message, caught.value.hint) == (message, "Look again.")


async def test_what_takes_too_long_is_ended() -> None:
    """It is said so, and the process is gone."""
    with pytest.raises(AdminError, match=r"^sleep took longer than 0 seconds"):
        await run("sleep", "60", seconds=0.2)


async def test_what_is_missing_is_named() -> None:
    """The program by its name."""
    with pytest.raises(AdminError, match=r"^no-such-program cannot be run: No such file"):
        await run("no-such-program")
