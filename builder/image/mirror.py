"""Where Debian's packages come from: the mirror the host itself uses, or one that a person names."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from builder.errors import MirrorError

# Debian 12's and later keyring packages know the keys of Debian 13.
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
HINT = "Name a Debian mirror with --mirror URL or HOB_MIRROR; its address ends in /debian."


@dataclass(frozen=True)
class Mirror:
    """A mirror of Debian.

    Attributes:
        url: its address, without a slash at the end.
        security: the address of the security updates.
        options: settings of the host's apt that reach it, such as a proxy, in apt.conf's form.
    """

    url: str
    security: str
    options: tuple[str, ...] = ()

    def sources(self, suite: str, components: Sequence[str], keyring: str = KEYRING) -> list[str]:
        """The lines of a sources.list for a suite, its point updates and its security updates."""
        parts = " ".join(components)
        signed = f"[signed-by={keyring}]"
        return [
            f"deb {signed} {self.url} {suite} {parts}",
            f"deb {signed} {self.url} {suite}-updates {parts}",
            f"deb {signed} {self.security} {suite}-security {parts}",
        ]


def find_mirror(chosen: str = "") -> Mirror:
    """The mirror at `chosen`, else at $HOB_MIRROR, else the host's own.

    Raises:
        MirrorError: none is named and the host's apt has no Debian mirror.
    """
    named = (chosen or os.environ.get("HOB_MIRROR", "")).rstrip("/")
    found = host_addresses()
    if named:
        main = named
    else:
        main = next((url for url in found if url.endswith("/debian")), "")
        if not main:
            raise MirrorError("this machine's apt names no Debian mirror", hint=HINT)
    if "://" not in main:
        raise MirrorError(f"{main} is no address of a mirror", hint=HINT)
    # Mirrors carry the security archive beside the main one, under this name.
    security = main + "-security"
    return Mirror(main, security, host_proxies())


def host_addresses() -> list[str]:
    """The addresses of the archives that the host's apt uses, in its order; empty where there is no apt."""
    said = asked(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    return list(dict.fromkeys(line.rstrip("/") for line in said.splitlines()))


def host_proxies() -> tuple[str, ...]:
    """The proxies that the host's apt goes through, as lines for another apt's configuration."""
    lines = asked(["apt-config", "dump", "Acquire"]).splitlines()
    return tuple(line.rstrip(";") for line in lines if "::Proxy " in line and '""' not in line)


def asked(argv: list[str]) -> str:
    """What a program of the host's apt answers; "" where it is missing or refuses."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
