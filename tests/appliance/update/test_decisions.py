"""What is decided about updates: which versions are newer, what is refused, what the past is told as."""

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.json import encode

from appliance.admin.messages import Updates
from appliance.errors import ConflictError, UpdateError
from appliance.update import record, slots
from appliance.update.bundle import Bundle, parse, refusal
from appliance.update.record import Attempt, Record
from appliance.update.slots import Slots
from appliance.update.story import story
from appliance.update.verdict import judge, newer

HERE = Slots("hob-x86-64", "0.1.0", "a", "a", "a", frozenset("a"), {"rootfs": 10_000})

FAILED = "signature verification failed:"

STATUS = """{"compatible":"hob-x86-64","variant":"","booted":"/dev/vda2","boot_primary":"rootfs.0","slots":[
{"rootfs.1":{"class":"rootfs","device":"/dev/disk/by-partlabel/root-b","type":"raw","bootname":"b",
"state":"inactive","parent":null,"mountpoint":null,"boot_status":"bad"}},{"rootfs.0":{"class":"rootfs",
"device":"/dev/disk/by-partlabel/root-a","type":"raw","bootname":"a","state":"booted","parent":null,
"mountpoint":null,"boot_status":"good"}}],"artifact-repositories":[]}"""
"""RAUC 1.13 on a freshly flashed device."""


def offered(version: str = "0.2.0", compatible: str = "hob-x86-64", size: int = 10_000) -> Bundle:
    """A bundle as RAUC describes it."""
    return parse(
        f'{{"update": {{"version": "{version}", "compatible": "{compatible}"}},'
        f' "bundle": {{"format": "verity", "verity-size": 4096, "verity-salt": "00", "verity-hash": "00"}},'
        f' "images": [{{"slot-class": "rootfs", "size": {size}}}, {{"slot-class": "more", "size": 1}}]}}'
    )


@pytest.mark.parametrize(
    ("there", "here", "verdict"),
    [
        ("0.2.0", "0.1.0", True),
        ("0.10.0", "0.9.0", True),
        ("1.0", "1.0.0", False),
        ("0.1.0", "0.2.0", False),
        ("0.2.0", "0.2.0rc1", True),
        ("0.2.0.dev1", "0.2.0", False),
        ("0.2.0+local", "0.2.0", True),
        ("nonsense", "0.1.0", False),
        ("", "0.1.0", False),
        ("0.2.0", "unknown", True),
    ],
)
def test_newer(there: str, here: str, verdict: bool) -> None:
    """Versions are compared as Python's packages are."""
    assert newer(there, here) is verdict


def test_what_is_taken() -> None:
    """A newer version for this device that fits its slot; by force an older one."""
    judge(offered(), HERE)
    judge(offered("0.0.1"), HERE, force=True)
    judge(offered(size=10**12), replace(HERE, room={}))


@pytest.mark.parametrize(
    ("bundle", "here", "complaint"),
    [
        (offered(compatible="hob-rpi5"), HERE, "another device: hob-rpi5, and this is hob-x86-64"),
        (offered("0.0.9"), HERE, "version 0.0.9 is older than 0.1.0"),
        (offered("0.1.0"), HERE, "version 0.1.0 is what runs here"),
        (offered(size=10_001), HERE, "too large for this device: 10001 bytes for rootfs, and there is"),
    ],
)
def test_what_is_refused(bundle: Bundle, here: Slots, complaint: str) -> None:
    """Each refusal says why, and what to do."""
    with pytest.raises(UpdateError, match=complaint) as refused:
        judge(bundle, here)
    assert refused.value.hint


def test_the_way_back_is_kept() -> None:
    """While what runs is on trial, nothing goes into the slot that it came from."""
    with pytest.raises(ConflictError, match="on trial"):
        judge(offered("0.3.0"), replace(HERE, current="b"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"update": {"version": "1", "compatible": "x"}, "images": [], "bundle": {"format": "plain"}}',
        '{"update": {"version": "", "compatible": "x"}, "images": [], "bundle":'
        ' {"format": "verity", "verity-size": 1, "verity-salt": "", "verity-hash": ""}}',
    ],
)
def test_what_rauc_may_say_of_other_bundles(text: str) -> None:
    """A bundle of another project, or of another format, is not Hob's."""
    with pytest.raises(UpdateError, match="this file is no update"):
        parse(text)


@pytest.mark.parametrize(
    ("complaint", "words"),
    [
        ("Invalid bundle format: Signature size (7812741947749854319) exceeds bundle size", "only a part"),
        (f"{FAILED} error:1700009E:CMS routines::verification failure", "not as it was"),
        (f"{FAILED} Verify error: certificate has expired", "outside the time"),
        (
            f"{FAILED} Verify error: unable to get local issuer certificate",
            "not signed by",
        ),
        (f"{FAILED} Verify error: unsuitable certificate purpose", "not signed by"),
        ("failed to load keyring: No such file", "trusts nobody's"),
        ("rauc cannot be run: No such file or directory", "cannot be read as an update: rauc cannot be run"),
    ],
)
def test_raucs_words_for_people(complaint: str, words: str) -> None:
    """What RAUC 1.13 says, in words that tell what to do."""
    assert words in refusal(complaint, "x.raucb").message


def test_a_real_status() -> None:
    """A freshly flashed device's."""
    found = slots.parse(STATUS, "a", 'version = "0.1.0"\n', {"rootfs": 5})
    assert found == Slots("hob-x86-64", "0.1.0", "a", "a", "a", frozenset("a"), {"rootfs": 5})
    assert (found.other, found.on_trial) == ("b", False)


@pytest.mark.parametrize(
    ("status", "default", "image"),
    [
        ("", "a", 'version = "1"'),
        ("{}", "a", 'version = "1"'),
        (STATUS.replace("booted", "inactive"), "a", 'version = "1"'),
        (STATUS.replace('"bootname":"b"', '"bootname":"c"'), "a", 'version = "1"'),
        (STATUS, "", 'version = "1"'),
        (STATUS, "a", ""),
        (STATUS, "a", "version ="),
    ],
)
def test_a_status_that_says_too_little(status: str, default: str, image: str) -> None:
    """A device that does not know itself takes no update."""
    with pytest.raises(UpdateError, match="does not say what runs"):
        slots.parse(status, default, image, {})


def test_room_is_the_smallest_partitions(tmp_path: Path) -> None:
    """Both roots must hold what is installed; other disks' partitions do not count."""
    for name, label, sectors in (("vda2", "root-a", 100), ("vda3", "root-b", 90), ("sdb1", "photos", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "uevent").write_text(f"DEVTYPE=partition\nPARTNAME={label}\n")
        (tmp_path / name / "size").write_text(f"{sectors}\n")
    (tmp_path / "vda").mkdir()
    (tmp_path / "vda/uevent").write_text("DEVTYPE=disk\n")
    assert slots.room(tmp_path) == {"rootfs": 90 * 512}


WRITING = Attempt("b", "0.2.0", "0.1.0", "writing", boot="1")
WAITING = Attempt("b", "0.2.0", "0.1.0", "waiting", boot="1")


@pytest.mark.parametrize(
    ("attempt", "current", "boot", "state", "reason"),
    [
        (WRITING, "a", "1", "writing", ""),
        (WRITING, "a", "2", "failed", record.CUT_OFF),
        (WAITING, "a", "1", "waiting", ""),
        (WAITING, "b", "2", "waiting", ""),
        (WAITING, "a", "2", "returned", record.SILENT),
        (Attempt("b", "1", "0", "waiting", "why", boot="1"), "a", "2", "returned", "why"),
        (Attempt("b", "1", "0", "good", boot="1"), "a", "9", "good", ""),
    ],
)
def test_what_a_restart_decided(attempt: Attempt, current: str, boot: str, state: str, reason: str) -> None:
    """The past is told by what runs now and whether there was a restart since."""
    settled = record.settle(Record(attempt), current, "0.1.0", boot, now=5)
    assert settled.attempt is not None
    assert (settled.attempt.state, settled.attempt.reason) == (state, reason)
    assert settled.versions[current] == "0.1.0"


def test_the_record_is_whole_or_as_before(tmp_path: Path) -> None:
    """It survives being read by anybody, and rubbish is as good as nothing."""
    file = tmp_path / "deep" / "update.json"
    assert record.read(file) == Record()
    kept = Record(WAITING, {"a": "0.1.0"})
    record.write(kept, file)
    assert record.read(file) == kept
    assert [path.name for path in file.parent.iterdir()] == ["update.json"]
    file.write_bytes(encode(kept)[:20])
    assert record.read(file) == Record()


def told(state: str, **more: object) -> str:
    """The story of an attempt at 0.2.0."""
    values = {
        "compatible": "x",
        "version": "0.1.0",
        "slot": "a",
        "on_trial": False,
        "other": "",
        "can_go_back": False,
        "next": "a",
        "tried": "0.2.0",
        "at": 1.0,
        **more,
    }
    return story(Updates(state=state, **values))  # type: ignore[arg-type]  # named as the fields are


def test_stories() -> None:
    """Every end has its sentence, with the reason where something went wrong."""
    assert told("") == ""
    assert told("writing") == "0.2.0 is being installed."
    assert told("waiting").endswith("will be tried at the next start.")
    assert told("waiting", on_trial=True).startswith("0.2.0 runs on trial")
    assert told("good").endswith("and works.")
    assert told("failed", reason="The disk is full").endswith(": the disk is full.")
    assert "and 0.1.0 runs again: hob-guide is damaged." in told("returned", reason="hob-guide is damaged")
