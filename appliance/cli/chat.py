"""`hob chat`: a conversation in the terminal, with a Hob that runs here or elsewhere on the LAN."""

import contextlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import click

from appliance.errors import EngineUnavailableError, HobError, InvalidRequestError

READ_TIMEOUT = 600.0
"""Seconds without a byte. Hob sends one every few seconds, so this is for networks that vanish."""


@click.command("chat")
@click.argument("question", required=False)
@click.option(
    "--url", default="http://127.0.0.1:8080", show_default=True, help="Address of the Hob to talk to."
)
@click.option("--model", default="", help="Model to talk to; its default one if not given.")
def command(question: str | None, url: str, model: str) -> None:
    """Talk to Hob. With a QUESTION, or one from a pipe, print the answer and end.

    A Hob elsewhere wants an API key in HOB_API_KEY. Ctrl-C stops an answer, Ctrl-D ends the conversation.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidRequestError(
            f"--url {url!r} is not a web address", hint="For example http://hob.local:8080."
        )
    client = Client(url.rstrip("/"), model, os.environ.get("HOB_API_KEY", ""))
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is not None:
        if not question.strip():
            raise InvalidRequestError("the question is empty")
        client.ask(question)
    else:
        _converse(client)


def _converse(client: "Client") -> None:
    """Ask and answer until the person leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and a history
    client.check()
    click.echo("Ctrl-C stops an answer, Ctrl-D leaves.", err=True)
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if question.strip():
            try:
                client.ask(question)
            except KeyboardInterrupt:
                click.echo(" …")
            except HobError as error:
                click.echo(f"hob: {error} {error.hint}".rstrip(), err=True)


class Client:
    """One conversation with a Hob, kept on this side."""

    def __init__(self, url: str, model: str, key: str) -> None:
        self._url = url
        self._model = model
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        self._turns: list[dict[str, str]] = []
        # No proxy: Hob is on this machine or the LAN, whatever the environment says.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def check(self) -> None:
        """Raise, like `ask`, where no Hob answers."""
        self._open("/v1/models").close()

    def ask(self, question: str) -> None:
        """Print the answer as it comes. What was printed stays in the conversation, also of a stopped answer.

        Raises:
            HobError: no Hob answers there, or it refuses; the message is its own.
        """
        self._turns.append({"role": "user", "content": question})
        answer = ""
        try:
            for piece in self._pieces():
                answer += piece
                click.echo(piece, nl=False)
            click.echo()
        finally:
            if answer:
                self._turns.append({"role": "assistant", "content": answer})
            else:
                self._turns.pop()

    def _pieces(self) -> Iterator[str]:
        request = {"model": self._model, "messages": self._turns, "stream": True}
        with contextlib.closing(self._open("/v1/chat/completions", request)) as response:
            for line in response:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk = json.loads(line.removeprefix(b"data: "))
                if "error" in chunk:
                    raise HobError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content", "")

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers)  # noqa: S310 - http(s), checked
        try:
            return self._opener.open(request, timeout=READ_TIMEOUT)
        except urllib.error.HTTPError as error:
            raise HobError(_explanation(error)) from error
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise EngineUnavailableError(
                f"no Hob answers at {self._url} ({reason})",
                hint="Start one with `hob serve`, or name another with --url.",
            ) from error


def _explanation(error: urllib.error.HTTPError) -> str:
    """What the server said, or else its status."""
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}"
