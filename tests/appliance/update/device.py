"""A device with two slots, as its programs show it: RAUC and the loader's script, small but true to them.

Its update files have the format of RAUC's, but for the signature: where RAUC has CMS, they have the manifest
in plain, with the name of who signed it. What RAUC itself makes of bad files is tested with RAUC
(tests/builder/image/test_bundle.py), and the whole on an emulated machine (tests/image/test_update.py).
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.admin import updates
from appliance.update import install, record, slots

BLOCK = 4096
SALT = bytes(range(32))

RAUC = """\
#!{python}
import json, os, sys, time
from pathlib import Path
home = Path(os.environ["DEVICE"])
state = json.loads((home / "state.json").read_text())

def keep():
    (home / "state.json").write_text(json.dumps(state))

def fail(text):
    print(text, file=sys.stderr)
    sys.exit(1)

def read(path):
    data = Path(path).read_bytes()
    size = int.from_bytes(data[-8:]) if len(data) > 8 else 0
    if not 0 < size < len(data):
        fail("Invalid bundle format: Signature size is 0")
    try:
        found = json.loads(data[-8 - size : -8])
    except ValueError:
        fail("signature verification failed: error:1700009E:CMS routines::verification failure")
    if found["meta"]["signer"] != "friend":
        fail("signature verification failed: Verify error: unable to get local issuer certificate")
    return found

words = [word for word in sys.argv[1:] if not word.startswith("-")]
other = "b" if state["booted"] == "a" else "a"
if words == ["status"]:
    names = {{"a": "rootfs.0", "b": "rootfs.1"}}
    print(json.dumps({{
        "compatible": state["compatible"], "variant": "", "booted": "/dev/vda2",
        "boot_primary": names[state["once"] or state["default"]],
        "slots": [
            {{names[slot]: {{"class": "rootfs", "device": "/dev/x", "type": "raw", "bootname": slot,
              "state": "booted" if slot == state["booted"] else "inactive", "parent": None,
              "mountpoint": None, "boot_status": state["states"][slot]}}}}
            for slot in ("b", "a")
        ], "artifact-repositories": []}}))
elif words[0] == "info":
    print(json.dumps(read(words[1])))
elif words[:2] == ["status", "mark-active"]:
    state["once"] = other
    keep()
elif words[:2] == ["status", "mark-good"]:
    state["default"] = state["booted"]
    state["states"][state["booted"]] = "good"
    keep()
elif words[0] == "install":
    found = read(words[1])
    state["states"][other] = "bad"
    keep()
    print("installing")
    for share, text in ((0, "Installing"), (40, "Copying image to rootfs.1"), (99, "Copying done.")):
        print(f"{{share:3}}% {{text}}", flush=True)
        if state.get("hold") and share == 40:
            time.sleep(60)
        if state.get("fails") and share == 40:
            print("LastError: " + state["fails"])
            fail("Installing failed")
    state["once"], state["content"] = other, found["update"]["version"]
    keep()
    print("100% Installing done.")
else:
    fail("unknown: " + " ".join(words))
"""

SCRIPT = """\
#!{python}
import json, os, sys
state = json.loads(open(os.environ["DEVICE"] + "/state.json").read())
if sys.argv[1] == "get-default":
    print(state["default"])
else:
    sys.exit(2)
"""


@dataclass
class Device:
    """Its folder, with programs and state."""

    folder: Path

    @property
    def state(self) -> dict[str, object]:
        """What RAUC and the loader know."""
        found: dict[str, object] = json.loads((self.folder / "state.json").read_text())
        return found

    def set(self, **values: object) -> None:
        """Change what they know."""
        (self.folder / "state.json").write_text(json.dumps(self.state | values))

    def boot(self, version: str = "") -> None:
        """Restart: into the slot chosen for one start, or the default; `version` is what runs then."""
        state = self.state
        self.set(booted=state["once"] or state["default"], once="")
        (self.folder / "boot_id").write_text(f"{(self.folder / 'boot_id').read_text()}x")
        if version:
            (self.folder / "image.toml").write_text(f'version = "{version}"\n')

    def bundle(
        self,
        name: str = "hob.raucb",
        version: str = "0.2.0",
        compatible: str = "hob-test",
        signer: str = "friend",
        size: int = 5 * BLOCK,
    ) -> Path:
        """An update file in the folder that updates are taken from."""
        file = self.folder / "updates" / name
        file.write_bytes(bundle(version, compatible, signer, os.urandom(size)))
        return file


def bundle(version: str, compatible: str, signer: str, data: bytes) -> bytes:
    """The bytes of an update file; up to 128 blocks, so that its hash tree has one level."""
    hashes = b"".join(
        hashlib.sha256(SALT + data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)
    )
    tree = hashes + bytes(-len(hashes) % BLOCK)
    told = {
        "update": {"version": version, "compatible": compatible, "build": "1", "description": "Hob"},
        "hooks": {"filename": "hook", "hooks": []},
        "images": [{"slot-class": "rootfs", "filename": "root.img", "size": len(data), "checksum": ""}],
        "bundle": {
            "format": "verity",
            "verity-size": len(tree),
            "verity-salt": SALT.hex(),
            "verity-hash": hashlib.sha256(SALT + tree).hexdigest(),
        },
        "meta": {"signer": signer},
    }
    signature = json.dumps(told).encode()
    return data + tree + signature + len(signature).to_bytes(8)


def make(folder: Path, patch: pytest.MonkeyPatch) -> Device:
    """A device that was flashed with 0.1.0, for the code under test to find."""
    (folder / "bin").mkdir(parents=True)
    (folder / "updates").mkdir()
    for name, text in (("rauc", RAUC), ("slots", SCRIPT)):
        program = folder / "bin" / name
        program.write_text(text.format(python=sys.executable))
        program.chmod(0o755)
    (folder / "state.json").write_text(
        json.dumps(
            {
                "compatible": "hob-test",
                "booted": "a",
                "default": "a",
                "once": "",
                "states": {"a": "good", "b": "bad"},
            }
        )
    )
    (folder / "image.toml").write_text('version = "0.1.0"\n')
    (folder / "boot_id").write_text("1")
    patch.setenv("DEVICE", str(folder))
    patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    patch.setattr(install, "CONFIG", folder / "image.toml")
    patch.setattr(install, "BACKEND", folder / "bin/slots")
    patch.setattr(slots, "IMAGE", folder / "image.toml")
    patch.setattr(record, "FILE", folder / "update.json")
    patch.setattr(record, "BOOT_ID", folder / "boot_id")
    patch.setattr(updates, "FOLDERS", (folder / "updates",))
    return Device(folder)
