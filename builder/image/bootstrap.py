"""Makes a Debian tree from nothing, on any machine with apt, without touching that machine's own apt.

mmdebstrap of the suite itself does the work; this machine's may be old or absent, so it is fetched each time.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from builder.errors import MirrorError, ToolMissingError
from builder.image.cache import Cache
from builder.image.mirror import Mirror
from builder.image.namespace import Spec
from builder.image.process import Line, finish, launch

SUITE = "trixie"

# The loader and the stub of the other architecture are only files; dpkg would refuse to install two of them.
OTHER_STUB = (
    'chroot "$1" sh -ec \'cd /tmp; apt-get -q download systemd-boot-efi:%s; '
    "dpkg-deb -x systemd-boot-efi_*.deb /; rm systemd-boot-efi_*.deb'"
)


def bootstrap(
    tree: Path,
    packages: Sequence[str],
    architectures: tuple[str, str],
    mirror: Mirror,
    cache: Cache,
    line: Line | None,
) -> None:
    """Make a Debian tree with packages.

    Args:
        tree: must not exist.
        packages: what is in it besides the essential ones; what they recommend is not.
        architectures: its own, and another one of which it only has the programs for firmware.
        mirror: where packages come from.
        cache: for room to work.
        line: is told what mmdebstrap says.

    Raises:
        ToolMissingError: this machine has no apt, dpkg or perl.
        MirrorError: the mirror does not answer.
        CommandError: a package cannot be installed.
    """
    with cache.scratch("mmdebstrap") as folder:
        program = fetch_mmdebstrap(folder, mirror)
        hooks = [OTHER_STUB % architectures[1]] if "systemd-boot-efi" in packages else []
        argv = [
            *("perl", program, "--mode=root", "--variant=minbase", "--format=directory"),
            "--include=" + ",".join(packages),
            f"--architectures={','.join(architectures)}",
            *('--aptopt=Acquire::Languages "none"', *(f"--aptopt={option}" for option in mirror.options)),
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")),
            *(f"--customize-hook={hook}" for hook in hooks),
            *(SUITE, str(tree), *mirror.sources(SUITE, ("main",))),
        ]
        env = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        running = launch(
            Spec(argv=argv, network=True), env, subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE
        )
        finish(running, "mmdebstrap", line=line)


def fetch_mmdebstrap(folder: Path, mirror: Mirror) -> str:
    """Download and unpack mmdebstrap of `SUITE` beside the host's apt; returns the program's path."""
    for program in ("apt-get", "dpkg-deb", "perl"):
        if shutil.which(program) is None:
            raise ToolMissingError(
                f"{program} is missing: images are built on Debian or a system derived from it",
                hint="Build in a Debian container or virtual machine.",
            )
    config = private_apt(folder, mirror)
    for argv in (["apt-get", "-q", "update"], ["apt-get", "-q", "download", "mmdebstrap"]):
        done = subprocess.run(
            argv,
            cwd=folder,
            env=os.environ | {"APT_CONFIG": str(config)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise MirrorError(
                f"{mirror.url} cannot be read: {done.stderr.strip()[-500:]}",
                hint="Check the network, or name another Debian mirror with --mirror or HOB_MIRROR.",
            )
    deb = next(folder.glob("mmdebstrap_*.deb"))
    unpack = ["dpkg-deb", "-x", str(deb), str(folder / "unpacked")]
    subprocess.run(unpack, check=True, capture_output=True)
    return str(folder / "unpacked/usr/bin/mmdebstrap")


def private_apt(folder: Path, mirror: Mirror) -> Path:
    """An apt configuration with state, lists and sources of its own in a folder."""
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text("\n".join(mirror.sources(SUITE, ("main",))) + "\n")
    config = folder / "apt.conf"
    config.write_text(
        f"""
        Dir::State "{folder}";
        Dir::State::status "{folder}/status";
        Dir::State::lists "{folder}/lists";
        Dir::Cache "{folder}";
        Dir::Cache::archives "{folder}/archives";
        Dir::Etc::sourcelist "{folder}/sources.list";
        Dir::Etc::sourceparts "/dev/null";
        APT::Sandbox::User "";
        #clear APT::Update::Post-Invoke;
        #clear APT::Update::Post-Invoke-Success;
        """
    )
    return config
