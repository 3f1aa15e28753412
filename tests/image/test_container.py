"""The container image answers: as an unprivileged user, with a read-only root, on both architectures."""

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import __version__
from builder.image.cache import Cache
from builder.image.toolbox import Toolbox, open_toolbox
from tests.image.building import build
from tests.image.conftest import ENVIRONMENT
from tests.image.container import TOOLS, Container

pytestmark = pytest.mark.image

LIST_MODELS = """
import sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8080/v1/models")
request.add_header("authorization", f"Bearer {sys.argv[1]}")
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""

# The service, asked as a person would; then the answer on the first line of output.
SERVE_AND_ASK = """
python=/opt/hob/bin/python
# The loopback interface of a new network namespace is down.
$python -I -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH14x", b"lo", 0x41))'
export HOB_DATA_DIR=/tmp/data HOB_LAN=false
mkdir /tmp/data
hob serve > /tmp/log 2>&1 &
for _ in $(seq 90); do
    $python -I -c 'import urllib.request as r
r.urlopen("http://127.0.0.1:8080/healthz", timeout=9)' 2> /dev/null && break
    sleep 1
done
hob chat "What is Hob?" || { cat /tmp/log >&2; exit 1; }
kill "$!"
"""


@pytest.fixture(scope="session")
def toolbox(cache: Cache) -> Toolbox:
    """The image builder's tools."""
    if os.geteuid() != 0:
        pytest.skip("another user's files are unpacked as root")
    return open_toolbox(cache)


@pytest.fixture(scope="session")
def archive(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive for both architectures, as `hob image build oci` makes it."""
    return build("oci", tmp_path_factory.mktemp("oci"), ENVIRONMENT).file(".tar")


@pytest.fixture
def container(archive: Path, toolbox: Toolbox, tmp_path: Path) -> Iterator[Container]:
    """The image for this machine, unpacked."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    made = Container.unpack(archive, "amd64", tmp_path / "container", toolbox)
    yield made
    made.close()


def test_it_answers_and_keeps_what_it_is_told(container: Container) -> None:
    """Read-only root, no capability, only /data writable: a model's answer, and a key that outlives it."""
    assert container.process["user"] == {"uid": 10001, "gid": 10001}
    container.start()
    status = container.status()
    assert status["Uid"].split() == ["10001"] * 4
    assert status["CapEff"] == status["CapPrm"] == "0000000000000000"
    answer = container.run("hob", "chat", "What is Hob?").stdout
    assert "language model" in answer
    for folder in ("etc", "tmp", "run", "dev", "var"):
        assert container.run("/usr/bin/touch", f"/{folder}/x", check=False).returncode != 0
    key = container.run("hob", "key", "add", "laptop").stdout.strip()
    assert key.startswith("hob_")
    models = container.run("/opt/hob/bin/python", "-I", "-c", LIST_MODELS, key)
    assert "hob-guide" in [model["id"] for model in json.loads(models.stdout)["data"]]
    assert container.stop() in (0, 143)
    container.start()
    assert "laptop" in container.run("hob", "key", "list").stdout


def test_the_first_visit_has_its_code_in_the_log(container: Container) -> None:
    """`docker logs` is where an owner finds it; without it nobody becomes the owner."""
    container.start()
    assert "with this code: " in container.log()
    assert "cannot answer" not in container.log()


def test_the_same_image_answers_on_arm(archive: Path, toolbox: Toolbox, tmp_path: Path) -> None:
    """Under QEMU's user emulation: the version, and a real answer by the library for Arm's dot products."""
    arm = Container.unpack(archive, "arm64", tmp_path / "container", toolbox)
    inside = toolbox.within(arm.rootfs)
    assert __version__ in inside.run(["hob", "--version"], foreign="arm64", timeout=60)
    answer = inside.run(["sh", "-euc", SERVE_AND_ASK], foreign="arm64", timeout=240)
    assert "language model" in answer
    arm.close()


def test_other_programs_read_the_index(archive: Path, toolbox: Toolbox) -> None:
    """skopeo finds both architectures and no fault; nothing in the archive is a link or lies outside."""
    raw = toolbox.run(["skopeo", "inspect", "--raw", f"oci-archive:{archive}"], read=[archive.parent])
    assert [each["platform"]["architecture"] for each in json.loads(raw)["manifests"]] == ["amd64", "arm64"]
    for architecture in ("amd64", "arm64"):
        told = toolbox.run(
            ["skopeo", "--override-arch", architecture, "inspect", f"oci-archive:{archive}"],
            read=[archive.parent],
        )
        assert json.loads(told)["Architecture"] == architecture
        assert json.loads(told)["Labels"]["org.opencontainers.image.version"] == __version__
    with tarfile.open(archive) as opened:
        assert all(member.isreg() or member.isdir() for member in opened)


def test_two_builds_have_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    """From the same lock, in another folder."""
    again = build("oci", tmp_path, ENVIRONMENT).file(".tar")
    done = subprocess.run(["cmp", archive, again], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_it_is_small(archive: Path) -> None:
    """Both architectures together: what a registry keeps."""
    assert archive.stat().st_size < 220_000_000
