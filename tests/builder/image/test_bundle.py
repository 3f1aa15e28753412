"""Updates as RAUC makes and checks them: what a device takes, and what each kind of bad file is called."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.errors import UpdateError
from appliance.update.bundle import Bundle, check_content, parse, refusal
from builder.errors import CommandError
from builder.image import keys as signing
from builder.image.bundle import make_bundle, manifest
from builder.image.cache import Cache, default_root
from builder.image.keys import Keys
from builder.image.rauc import checking_conf, release, system_conf
from builder.image.toolbox import Toolbox, kept_toolbox

EPOCH = 1_700_000_000
COMPATIBLE = "hob-test"


@dataclass
class Bench:
    """Keys, a bundle signed with them, and RAUC with the configuration of a device that trusts them."""

    toolbox: Toolbox
    folder: Path
    keys: Keys
    bundle: Path

    def inspect(self, file: Path) -> Bundle:
        """What the device's side makes of a file."""
        config = self.folder / "system.conf"
        config.write_text(checking_conf(COMPATIBLE, self.keys.keyring))
        command: list[str | Path] = ["rauc", "info", "--conf", config, "--output-format=json-2", file]
        try:
            return parse(self.toolbox.run(command, read=[self.folder, file.parent], timeout=60))
        except CommandError as error:
            raise refusal(str(error).splitlines()[-1], file.name) from error

    def changed(self, change: Callable[[bytearray], object]) -> Path:
        """A copy of the bundle with something wrong with it."""
        data = bytearray(self.bundle.read_bytes())
        change(data)
        file = self.folder / "changed.raucb"
        file.write_bytes(data)
        return file


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One for all tests; none changes what another needs."""
    toolbox = kept_toolbox(Cache(default_root()))
    if toolbox is None:
        pytest.skip("no toolbox is in the cache; building an image makes one")
    folder = tmp_path_factory.mktemp("bundles")
    keys = signing.make(folder / "keys")
    (folder / "root.squashfs").write_bytes(os.urandom(3 * 2**20 + 4096))
    (folder / "hob.efi").write_bytes(os.urandom(2**18))
    bench = Bench(toolbox, folder, keys, folder / "good.raucb")
    build(bench, bench.bundle)
    return bench


def build(bench: Bench, out: Path, *, keys: Keys | None = None, compatible: str = COMPATIBLE) -> Path:
    """A bundle with a root and a kernel of random bytes."""
    return make_bundle(
        bench.toolbox,
        out,
        compatible=compatible,
        version="0.2.0",
        keys=keys or bench.keys,
        root=bench.folder / "root.squashfs",
        kernel=bench.folder / "hob.efi",
        epoch=EPOCH,
    )


def test_a_good_bundle(bench: Bench) -> None:
    """It names device and version, and every block of it is as it was signed."""
    found = bench.inspect(bench.bundle)
    assert (found.compatible, found.version) == (COMPATIBLE, "0.2.0")
    assert [(image.slot_class, image.size) for image in found.images] == [("rootfs", 3 * 2**20 + 4096)]
    shares: list[float] = []
    check_content(bench.bundle, found.bundle, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert not [path for path in bench.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.95])
def test_flipped_bits_in_the_content(bench: Bench, place: float) -> None:
    """The signature is right, and a single bit of the data is not: found before a slot is touched."""

    def flip(data: bytearray) -> None:
        data[int(len(data) * place)] ^= 1

    file = bench.changed(flip)
    found = bench.inspect(file)
    with pytest.raises(UpdateError, match="damaged"):
        check_content(file, found.bundle)


def test_flipped_bits_in_the_hash_tree(bench: Bench) -> None:
    """The kernel would stumble over it in the middle of an installation; here it is found before."""
    found = bench.inspect(bench.bundle)
    signature = int.from_bytes(bench.bundle.read_bytes()[-8:])

    def flip(data: bytearray) -> None:
        data[-8 - signature - found.bundle.verity_size // 2] ^= 1

    file = bench.changed(flip)
    with pytest.raises(UpdateError, match="damaged"):
        check_content(file, bench.inspect(file).bundle)


def test_flipped_bits_in_the_signature(bench: Bench) -> None:
    """A manifest that was changed, or a signature."""

    def flip(data: bytearray) -> None:
        data[-1200] ^= 1

    with pytest.raises(UpdateError, match="not as it was signed"):
        bench.inspect(bench.changed(flip))


@pytest.mark.parametrize("left", [0, 100, 4096, 2**20, -1])
def test_a_truncated_bundle(bench: Bench, left: int) -> None:
    """A download that was cut off at any place is no update."""

    def cut(data: bytearray) -> None:
        del data[left:]

    with pytest.raises(UpdateError, match="no update, or only a part of one"):
        bench.inspect(bench.changed(cut))


@pytest.mark.parametrize("content", [b"hello\n" * 5000, bytes(2**20), b"\x89PNG" + os.urandom(50_000)])
def test_what_is_no_bundle(bench: Bench, content: bytes) -> None:
    """A text, zeroes, a picture."""
    file = bench.folder / "other.raucb"
    file.write_bytes(content)
    with pytest.raises(UpdateError, match="no update"):
        bench.inspect(file)


def test_somebody_elses_signature(bench: Bench) -> None:
    """Keys of somebody whom the device does not know."""
    other = signing.make(bench.folder / "other-keys")
    file = build(bench, bench.folder / "other-signed.raucb", keys=other)
    with pytest.raises(UpdateError, match="not signed by somebody whom this device trusts"):
        bench.inspect(file)


def test_a_renewed_certificate_is_trusted(bench: Bench, tmp_path: Path) -> None:
    """The authority is what devices know: its next certificate needs no update of theirs."""
    copy = tmp_path / "keys"
    subprocess.run(["cp", "-a", bench.keys.folder, copy], check=True)
    file = build(bench, bench.folder / "renewed.raucb", keys=signing.renew(copy))
    assert bench.inspect(file).version == "0.2.0"


def test_a_certificate_that_may_not_sign_code(bench: Bench) -> None:
    """Another certificate of the same authority, made for something else, signs no update."""
    with pytest.raises(UpdateError, match="not signed by somebody"):
        bench.inspect(signed_by(bench, "mail", "extendedKeyUsage=emailProtection", "-days 30"))


def test_an_expired_certificate(bench: Bench) -> None:
    """A signature made after its certificate had ended is refused, whatever the device's clock says."""
    ended = "-not_before 20200101000000Z -not_after 20210101000000Z"
    with pytest.raises(UpdateError, match="outside the time for which its certificate is valid"):
        bench.inspect(signed_by(bench, "ended", "extendedKeyUsage=critical,codeSigning", ended))


def signed_by(bench: Bench, name: str, usage: str, dates: str) -> Path:
    """A bundle signed with a certificate that the keys' own authority has issued, but should not have."""
    work = bench.folder / name
    work.mkdir()
    (work / "ext").write_text(f"keyUsage=critical,digitalSignature\n{usage}\n")
    script = f"""
        set -e
        openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x \\
            -keyout signing.key -out request.pem
        openssl x509 -req -in request.pem -CA {bench.keys.folder}/ca.pem -CAkey {bench.keys.folder}/ca.key \\
            -set_serial 77 {dates} -extfile ext -out signing.pem
        mkdir content
        cp {bench.folder}/root.squashfs content/root.img
        cp {bench.folder}/hob.efi content/hob.efi
        printf '#!/bin/sh\\n' >content/hook
        cp manifest content/manifest.raucm
        # Without a keyring RAUC does not look at what it has signed.
        rauc bundle --cert signing.pem --key signing.key content made.raucb
    """
    (work / "manifest").write_text(manifest(COMPATIBLE, "0.2.0", EPOCH))
    bench.toolbox.run(["sh", "-c", script], read=[bench.folder], write=[work], cwd=work, timeout=60)
    return work / "made.raucb"


def test_a_bundle_is_not_made_with_what_devices_refuse(bench: Bench, tmp_path: Path) -> None:
    """The check is the device's own: wrong keys fail here, not in the field."""
    other = signing.make(tmp_path / "keys")
    mixed = Keys(bench.keys.folder, bench.keys.expires)
    subprocess.run(["cp", "-a", mixed.folder, tmp_path / "mixed"], check=True)
    (tmp_path / "mixed/keyring.pem").write_bytes(other.keyring.read_bytes())
    with pytest.raises(CommandError, match="signature"):
        build(bench, tmp_path / "x.raucb", keys=Keys(tmp_path / "mixed", 0))
    assert not (tmp_path / "x.raucb").exists()


@pytest.mark.parametrize(
    ("version", "numbers"), [("0.2.0", "0.2.0"), ("1.2", "1.2.0"), ("0.3.0rc1", "0.3.0"), ("2", "2.0.0")]
)
def test_versions_as_rauc_compares_them(version: str, numbers: str) -> None:
    """Three numbers, whatever else a version has."""
    assert release(version) == numbers
    assert f"min-bundle-version={numbers}\n" in system_conf("x", version)
