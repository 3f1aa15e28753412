"""Releases: what is written beside an image, and what `verify` says of every kind of damage."""

import hashlib
import json
import lzma
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from builder.errors import FormatError
from builder.image import disk, gpt, imager, inventory, keys, manifest, recipe, release, verify
from builder.image.manifest import File, Model, Package
from tests.builder.image import disks
from tests.builder.image.disks import MIB
from tests.service import run_hob

NAME = "hob-nuc-1.2.3"
ROOT_SIZE = 3 * MIB + 517
"""Bytes of the small root file system."""


def quiet(_stage: str, _text: str, _share: float | None) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a release of a small image, as the builder leaves it. Not to be changed."""
    folder = tmp_path_factory.mktemp("release")
    noise = random.Random(11)
    root = folder.parent / "root.squashfs"
    root.write_bytes(noise.randbytes(ROOT_SIZE))
    parts = [
        disk.Part("HOB", "esp", MIB, "vfat", "HOB"),
        disk.Part("root-a", "linux-generic", 4 * MIB, blocks=root),
        disk.Part("root-b", "linux-generic", 4 * MIB),
        disk.Part("data", "var", MIB, "ext4"),
    ]
    size, at, entries = 12 * MIB, MIB, []
    for part in parts:
        entries.append(disks.Part(part.label, at // 512, (at + part.size) // 512 - 1))
        at += part.size
    data = bytearray(size)
    head = disks.table(size // 512, entries)
    data[: len(head)] = head
    data[MIB : 2 * MIB] = noise.randbytes(MIB)
    data[2 * MIB : 2 * MIB + ROOT_SIZE] = root.read_bytes()
    data[10 * MIB : 11 * MIB] = noise.randbytes(MIB)
    image = folder / f"{NAME}.img"
    image.write_bytes(data)
    map_ = disks.block_map(image)
    unpacked = folder.parent / image.name
    shutil.copyfile(image, unpacked)
    packed = disks.pack(image)
    release.write(
        folder,
        recipe=recipe.load("nuc"),
        contents=contents(),
        image=unpacked,
        parts=parts,
        files=[map_, packed],
    )
    return folder


def contents() -> release.Contents:
    """Some software."""
    return release.Contents(
        version="1.2.3",
        epoch=1_700_000_000,
        lock="0" * 64,
        slots=release.SLOTS,
        debian=inventory.debian(
            [
                {"name": "libstdc++6", "version": "14.2.0-19", "architecture": "amd64"},
                {"name": "base-files", "version": "1:13.8+deb13u1", "architecture": "amd64"},
            ],
            {("libstdc++6", "14.2.0-19"): "cd" * 32},
        ),
        python=(Package("hob-appliance", "1.2.3", licence="Apache-2.0"), Package("numpy", "2.5.5")),
        models=(Model("hob-guide", "ef" * 32, 3_000_000, "Apache-2.0"),),
        libraries=(File("llama.so", 5, "12" * 32),),
    )


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the release, to be damaged."""
    copy = tmp_path / "release"
    shutil.copytree(made, copy)
    return copy


def check(folder: Path, keyring: Path | None = None) -> verify.Verified:
    """Verify the one release in a folder."""
    (path,) = verify.find(folder)
    return verify.verify(path, keyring=keyring, tell=quiet)


def rewrite(folder: Path, change: Callable[[manifest.Manifest], manifest.Manifest]) -> None:
    """Change the manifest, and have it name the files as they are now."""
    path = folder / f"{NAME}.manifest.json"
    changed = change(manifest.read(path))
    files = tuple(
        File(file.name, (folder / file.name).stat().st_size, sum_of(folder / file.name))
        for file in changed.files
    )
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(changed, files=files)))


def sum_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_release_is_what_its_manifest_says(folder: Path) -> None:
    """The manifest names every file, what the partitions hold, and which slot has a system."""
    result = check(folder)
    described = result.manifest
    assert (result.signed, result.signature, result.blocks) == (None, False, True)
    assert [file.name for file in described.files] == [
        f"{NAME}.cdx.json",
        f"{NAME}.img.bmap",
        f"{NAME}.img.xz",
    ]
    assert [(part.label, part.start // MIB, part.content) for part in described.partitions] == [
        ("HOB", 1, MIB),
        ("root-a", 2, ROOT_SIZE),
        ("root-b", 6, 0),
        ("data", 10, MIB),
    ]
    assert [slot.filled for slot in described.slots] == [True, False]
    assert (described.built, described.device) == ("2023-11-14T22:13:20Z", "nuc")
    assert described.debian[1] == Package("libstdc++6", "14.2.0-19", "amd64", "cd" * 32)


def test_an_unpacked_image_takes_the_packed_ones_place(folder: Path) -> None:
    """Somebody may have unpacked it, as `unxz` does."""
    disks_unpack(folder / f"{NAME}.img.xz")
    assert check(folder).manifest.image.name == f"{NAME}.img"
    with (folder / f"{NAME}.img").open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"x")
    with pytest.raises(FormatError, match=r"partition root-a \(slot a\) does not hold"):
        check(folder)


def disks_unpack(packed: Path) -> None:
    """Replace a packed image by the unpacked one."""
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()


def test_any_file_leads_to_its_manifest(folder: Path) -> None:
    """So do a folder and the manifest itself; a file that none speaks of is refused."""
    path = folder / f"{NAME}.manifest.json"
    (folder / f"{NAME}.img").touch()
    for name in (f"{NAME}.img.xz", f"{NAME}.img", f"{NAME}.cdx.json", f"{NAME}.manifest.json"):
        assert verify.find(folder / name) == [path]
    (folder / "other.img").touch()
    with pytest.raises(FormatError, match=r"no manifest beside .*other\.img speaks of it"):
        verify.find(folder / "other.img")
    (folder / "empty").mkdir()
    with pytest.raises(FormatError, match="empty has no manifest"):
        verify.find(folder / "empty")


@pytest.mark.parametrize("name", [f"{NAME}.img.xz", f"{NAME}.img.bmap", f"{NAME}.cdx.json"])
def test_each_damage_to_a_file_has_its_own_words(folder: Path, name: str) -> None:
    """Missing, cut off, too long, and of the right size with another byte."""
    path = folder / name
    data = path.read_bytes()
    for left, told in (
        (data[:-1], f"{name} is cut off: {len(data) - 1} bytes instead of {len(data)}"),
        (data + b" ", f"{name} is too long"),
        (data[:50] + bytes([data[50] ^ 1]) + data[51:], f"{name} is damaged"),
    ):
        path.write_bytes(left)
        with pytest.raises(FormatError, match=told):
            check(folder)
    path.unlink()
    with pytest.raises(FormatError, match=f"{name} is missing"):
        check(folder)


@pytest.mark.parametrize(
    ("label", "field", "value", "told"),
    [
        ("root-b", "uuid", "00000000-0000-0000-0000-00000000000a", "partition root-b has the id 0{8}-"),
        ("data", "type", "other", "partition data has the type"),
        ("data", "size", MIB // 2, "partition data has a size of 1048576, and the manifest says 524288"),
        ("root-b", "start", 6 * MIB + 512, "partition root-b has its start at byte 6291456"),
        ("root-b", "label", "spare", "has the partitions HOB, root-a, root-b, data, and the manifest"),
        ("HOB", "sha256", "0" * 64, "partition HOB does not hold what the manifest says"),
        ("root-a", "sha256", "0" * 64, r"partition root-a \(slot a\) does not hold what the manifest says"),
    ],
)
def test_a_manifest_of_other_partitions_is_refused(
    folder: Path, label: str, field: str, value: Any, told: str
) -> None:
    """Even if every file is what the manifest says: the table and the content have to be, too."""

    def change(described: manifest.Manifest) -> manifest.Manifest:
        parts = list(described.partitions)
        number = [part.label for part in parts].index(label)
        changes: dict[str, Any] = {field: value}
        if field == "size":
            changes["content"] = value
        if field == "start":
            changes["size"] = parts[number].size - 512
        parts[number] = msgspec.structs.replace(parts[number], **changes)
        slots = described.slots if label != "root-b" or field != "label" else ()
        return msgspec.structs.replace(described, partitions=tuple(parts), slots=slots)

    rewrite(folder, change)
    with pytest.raises(FormatError, match=told):
        check(folder)


def test_another_image_under_the_same_name_is_refused(folder: Path) -> None:
    """One whose size, gaps or table are others, unpacked or packed well."""
    disks_unpack(folder / f"{NAME}.img.xz")
    image = folder / f"{NAME}.img"
    data = image.read_bytes()
    for changed, told in (
        (data[:-512], f"has {len(data) - 512} bytes unpacked, and the manifest says {len(data)}"),
        (data[: 11 * MIB] + b"x" + data[11 * MIB + 1 :], "differs from its manifest outside of what"),
        (data[:512] + bytes(512) + data[1024:], "has no partition table"),
        (data[:1100] + b"\xff" + data[1101:], "the partition table's checksum is wrong"),
    ):
        image.write_bytes(changed)
        with pytest.raises(FormatError, match=told):
            check(folder)


def test_a_block_map_of_another_image_is_refused(folder: Path) -> None:
    """One that is sound in itself, and vouched for, but whose blocks are others."""
    text = (folder / f"{NAME}.img.bmap").read_text()
    other = text.replace(text.split('chksum="')[2][:64], "0" * 63 + "1")
    own = text.split("<BmapFileChecksum>")[1].split()[0]
    disks.seal(folder / f"{NAME}.img.bmap", other.replace(own, "0" * 64))
    rewrite(folder, lambda described: described)
    with pytest.raises(FormatError, match=r"img\.bmap does not belong to hob-nuc-1\.2\.3\.img\.xz: bytes"):
        check(folder)
    small = other.replace(f"<ImageSize> {12 * MIB} ", f"<ImageSize> {12 * MIB - 1} ").replace(own, "0" * 64)
    disks.seal(folder / f"{NAME}.img.bmap", small)
    rewrite(folder, lambda described: described)
    with pytest.raises(FormatError, match="is for an image of 12582911 bytes, not one of 12582912"):
        check(folder)


def test_an_unpackable_image_is_refused_by_what_is_wrong(folder: Path) -> None:
    """A manifest can be right about a file that was broken before it was named."""
    path = folder / f"{NAME}.img.xz"
    path.write_bytes(path.read_bytes()[:-2000])
    rewrite(folder, lambda described: described)
    with pytest.raises(FormatError, match=r"img\.xz cannot be unpacked: it ends early"):
        check(folder)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="signing takes openssl")
def test_signatures_are_looked_at_where_a_keyring_is_named(folder: Path, tmp_path: Path) -> None:
    """Signed by the keys, by others, not at all, and changed afterwards."""
    own, others = keys.make(tmp_path / "own"), keys.make(tmp_path / "others")
    with pytest.raises(FormatError, match="is not signed"):
        check(folder, own.keyring)
    path = folder / f"{NAME}.manifest.json"
    keys.sign(own, path, path.with_name(f"{path.name}.p7s"))
    assert check(folder).signature
    assert check(folder).signed is None
    assert (check(folder, own.keyring).signed or 0) > 1_700_000_000
    with pytest.raises(FormatError, match="is not what was signed, or not signed by"):
        check(folder, others.keyring)
    path.write_bytes(path.read_bytes().replace(b'"nuc"', b'"cun"'))
    with pytest.raises(FormatError, match="is not what was signed, or not signed by"):
        check(folder, own.keyring)


def test_the_bill_of_materials_is_valid_and_complete(made: Path) -> None:
    """By CycloneDX's own schema; everything is in it, under names that databases know."""
    text = (made / f"{NAME}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert {part["bom-ref"]: part["type"] for part in bill["components"]} == {
        "pkg:deb/debian/base-files@1%3A13.8%2Bdeb13u1?arch=amd64&distro=debian-13": "library",
        "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=amd64&distro=debian-13": "library",
        "pkg:pypi/hob-appliance@1.2.3": "application",
        "pkg:pypi/numpy@2.5.5": "library",
        "model:hob-guide": "machine-learning-model",
        "library:llama.so": "library",
    }
    assert bill["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    (depends,) = bill["dependencies"]
    assert depends["dependsOn"] == sorted(part["bom-ref"] for part in bill["components"])


def test_imager_gets_everything_it_insists_on(made: Path, tmp_path: Path) -> None:
    """The keys that its schema requires, a whole URL, sums of the real files, and a device that fits."""
    document = json.loads((made / f"{NAME}.rpi-imager-manifest").read_text())
    (entry,), (device,) = document["os_list"], document["imager"]["devices"]
    packed = made / f"{NAME}.img.xz"
    disks_unpack(Path(shutil.copy(packed, tmp_path)))
    image = tmp_path / f"{NAME}.img"
    assert entry["url"] == packed.as_uri()
    assert entry["icon"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert set(entry["devices"]) == set(device["tags"])
    expected = {
        "name": "Hob for PCs 1.2.3",
        "extract_size": image.stat().st_size,
        "extract_sha256": sum_of(image),
        "image_download_size": packed.stat().st_size,
        "release_date": "2023-11-14",
        "init_format": "cloudinit",
    }
    assert {key: entry[key] for key in expected} == expected
    assert entry["description"]
    assert device["name"]
    assert device["description"]


def test_an_address_for_downloads_is_taken_over(made: Path, tmp_path: Path) -> None:
    """Then the file is the same wherever it was written."""
    described = manifest.read(made / f"{NAME}.manifest.json")
    text = imager.write(described, tmp_path / "x", address="https://hob.example/files/").read_text()
    assert json.loads(text)["os_list"][0]["url"] == f"https://hob.example/files/{NAME}.img.xz"


def test_an_image_with_other_partitions_is_not_described(made: Path, tmp_path: Path) -> None:
    """The manifest would say what was meant and not what is."""
    image = disks.image(tmp_path)
    assert gpt.read(image.read_bytes()[:MIB]) is not None
    with pytest.raises(FormatError, match="has other partitions than it was made with"):
        release.describe(recipe.load("nuc"), contents(), image, [disk.Part("root-a", "esp", MIB)], quiet)


def test_the_command_says_what_was_checked(folder: Path, tmp_path: Path) -> None:
    """Three lines for people; with `--json` one object that has the same."""
    done = run_hob(tmp_path, "image", "verify", str(folder))
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            "hob-nuc-1.2.3.img is what its manifest says: Hob 1.2.3, PC, NUC or mini PC (x86-64, UEFI)",
            "  3 files; 5 MB packed, 0.0 GB unpacked",
            "  partitions HOB, root-a, root-b, data; slot a holds it, slot b is empty",
            "  not signed: nobody vouches for where it comes from",
        ],
    )
    done = run_hob(tmp_path, "image", "verify", "--json", str(folder / f"{NAME}.img.xz"))
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["device"], told["slots"], told["signed"]) == ("nuc", {"a": True, "b": False}, None)


def test_the_command_ends_with_an_error_for_a_damaged_release(folder: Path, tmp_path: Path) -> None:
    """One line that names the file, one that says what to do, and no traceback."""
    (folder / f"{NAME}.img.bmap").unlink()
    done = run_hob(tmp_path, "image", "verify", str(folder))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-2:] == [
        f"hob: {NAME}.img.bmap is missing in {folder}",
        "     Fetch it again, or build it anew.",
    ]
    done = run_hob(tmp_path, "image", "verify", "--json", str(folder))
    assert json.loads(done.stdout.splitlines()[-1])["hint"] == "Fetch it again, or build it anew."
