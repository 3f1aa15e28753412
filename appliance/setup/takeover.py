"""From the boot partition into the state: what a person wrote since the last time.

Three things may lie there: `hob.toml`, written by hand or by `hob image flash`, and Raspberry Pi Imager's
`user-data` and `network-config`. Each is taken when its content differs from what Hob left there. The state
is kept first; only then the secrets are removed, in place, so that a power cut loses neither.
"""

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from appliance.setup import scrub, wishes
from appliance.setup.places import Places
from appliance.setup.state import State, merge, save

log = logging.getLogger(__name__)

SETTINGS = "hob.toml"
IMAGER = ("user-data", "network-config")
REPORT = "hob-setup.txt"

MOUNT = "/usr/bin/mount"

LIMIT = 256 * 1024
"""Bytes of a settings file; a longer one is none."""

LEFT = "#cloud-config\n# Hob has taken over what stood here. Further changes belong into hob.toml.\n"


def take_over(places: Places, state: State) -> State:
    """The state with what the boot partition says, kept; its secrets are removed there.

    Without a boot partition, or with one that cannot be read, the state stays as it is.
    """
    files = {name: _content(places.boot / name) for name in (SETTINGS, *IMAGER)}
    new = {name for name, content in files.items() if content and _digest(content) != state.taken.get(name)}
    if not new:
        return state
    problems: list[str] = []
    left: dict[str, bytes] = {}
    if new & set(IMAGER):
        from appliance.setup import imager  # YAML, which few starts need

        texts = [_text(name, files[name] if name in new else b"", problems) for name in IMAGER]
        table, notes = imager.read(*texts)
        wished, wrong = wishes.check(table, places.zones)
        problems += notes + [f"Raspberry Pi Imager’s settings: {sentence}" for sentence in wrong]
        state = merge(state, wished)
        left |= {name: LEFT.encode() for name in IMAGER if name in new}
    if SETTINGS in new:  # last, so that it wins
        text = _text(SETTINGS, files[SETTINGS], problems)
        _, wrong = wishes.read(text, places.zones)
        problems += [f"{SETTINGS}: {sentence}" for sentence in wrong]
        with contextlib.suppress(tomllib.TOMLDecodeError):  # reported above; what cannot be read stays
            state = _merge_new(places, state, tomllib.loads(text))
            bare = scrub.scrub(text)
            left[SETTINGS] = bare.encode()
            state = msgspec.structs.replace(state, keys=_digests(tomllib.loads(bare)))
    state = msgspec.structs.replace(
        state,
        problems=problems,
        taken=state.taken | {name: _digest(left.get(name, files[name])) for name in new},
    )
    save(places.state, state)
    for sentence in problems:
        log.warning("%s", sentence)
    changed = {places.boot / name: content for name, content in left.items() if content != files[name]}
    if changed:
        with writable(places.boot):
            for file, content in changed.items():
                overwrite(file, content)
    return state


def _merge_new(places: Places, state: State, table: dict[str, object]) -> State:
    """The state with those keys of `hob.toml` that are others than Hob left there.

    An old line does not undo what was set on the page since; only writing it anew does.
    """
    digests = _digests(table)
    fresh = {key: value for key, value in table.items() if digests[key] != state.keys.get(key)}
    return merge(state, wishes.check(fresh, places.zones)[0])


def _digests(table: dict[str, object]) -> dict[str, str]:
    """What tells one value of a key from another."""
    return {
        key: _digest(json.dumps(value, sort_keys=True, default=str).encode()) for key, value in table.items()
    }


def report(places: Places, text: str) -> None:
    """Leave `text` beside the settings, for who looks at the boot partition on another computer."""
    file = places.boot / REPORT
    if not places.boot.is_dir() or _content(file) == text.encode():
        return
    with writable(places.boot):
        overwrite(file, text.encode())


@contextlib.contextmanager
def writable(boot: Path) -> Iterator[None]:
    """The boot partition open for writing; it is mounted read-only, so that no power cut finds it half
    written.

    What goes wrong is logged: a device whose boot partition cannot be written still works.
    """
    remount = os.path.ismount(boot) and os.statvfs(boot).f_flag & os.ST_RDONLY
    try:
        if remount:
            subprocess.run([MOUNT, "-o", "remount,rw", str(boot)], check=True, timeout=30)
        yield
    except (OSError, subprocess.SubprocessError) as error:
        log.error("the boot partition cannot be written: %s", error)
    finally:
        if remount:
            os.sync()
            subprocess.run([MOUNT, "-o", "remount,ro", str(boot)], check=False, timeout=30)


def overwrite(file: Path, content: bytes) -> None:
    """Write a file over itself, where it lies: a new file would leave the old one's secrets on the card."""
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as handle:
        length = handle.seek(0, os.SEEK_END)
        handle.seek(0)
        handle.write(content.ljust(length, b"\n"))
        handle.flush()
        os.fsync(handle.fileno())
        handle.truncate(len(content))
        os.fsync(handle.fileno())


def _content(file: Path) -> bytes:
    """What is in a file; nothing where it is missing, too long, or unreadable."""
    try:
        with file.open("rb") as handle:
            content = handle.read(LIMIT + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        log.error("%s cannot be read: %s", file, error)
        return b""
    if len(content) > LIMIT:
        log.error("%s is longer than %d bytes: no settings file", file, LIMIT)
        return b""
    return content


def _text(name: str, content: bytes, problems: list[str]) -> str:
    """A file's text. Windows' editors may have put a byte order mark in front."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"{name}: is not UTF-8 at byte {error.start}, so nothing in it was taken.")
        return ""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
