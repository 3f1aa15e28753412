"""Which Debian packages an image consists of: resolved once, locked by hash, and kept.

apt itself, in the toolbox, decides what belongs to a list of wanted packages, from the mirror's signed
lists. The result is a lock file. From a lock and the kept packages an image can be built again without any
network, and a package that was downloaded again must have the hash in the lock.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote, unquote

import msgspec

from builder.errors import CommandError, FormatError, MirrorError
from builder.image.cache import Cache, file_digest, require_space
from builder.image.mirror import KEYRING, Mirror
from builder.image.toolbox import Toolbox

FORMAT: Final = 1

Tell = Callable[[str, str, float | None], None]
# 'URI' FILE SIZE KIND:HASH, as `apt-get --print-uris` writes it.
URI = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")


class Package(msgspec.Struct, frozen=True, order=True):
    """A package as a mirror has it; `path` is below the mirror, or the security mirror if `security`."""

    name: str
    version: str
    architecture: str
    size: int
    sha256: str
    path: str
    security: bool = False

    @property
    def file(self) -> str:
        """A file name that says what it is. A colon cannot stand in it: apt would read a host there."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


class Lock(msgspec.Struct, frozen=True):
    """All packages of an image.

    Attributes:
        format: version of this file's format.
        suite, architecture: of Debian.
        wanted: what was asked for; the rest is what those need.
        epoch: when the mirror's lists were made, in seconds since 1970; the time of everything in the image.
        packages: sorted.
        tools: digest of the versions of the tools it was made with; "" where it is not known.
    """

    suite: str
    architecture: str
    wanted: list[str]
    epoch: int
    packages: list[Package]
    tools: str = ""
    format: Literal[1] = FORMAT


def dump(lock: Lock) -> str:
    """A lock as TOML, a line to a package, so that a difference of two locks can be read."""
    head = [
        "# Packages of an image. The same lock gives the same image, bit by bit.",
        f"format = {lock.format}",
        f"suite = {json.dumps(lock.suite)}",
        f"architecture = {json.dumps(lock.architecture)}",
        f"epoch = {lock.epoch}",
        f"tools = {json.dumps(lock.tools)}",
        f"wanted = {json.dumps(lock.wanted)}",
        "packages = [",
    ]
    rows = [
        "    { "
        + ", ".join(f"{key} = {json.dumps(value)}" for key, value in msgspec.to_builtins(package).items())
        + " },"
        for package in lock.packages
    ]
    return "\n".join([*head, *rows, "]"]) + "\n"


def parse(text: str, source: Path) -> Lock:
    """Read a lock file.

    Raises:
        FormatError: it is damaged or of another version of the format.
    """
    try:
        return msgspec.convert(tomllib.loads(text), Lock)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise FormatError(f"{source} is no lock file of an image: {error}") from error


def resolve(
    toolbox: Toolbox,
    mirror: Mirror,
    wanted: Sequence[str],
    *,
    suite: str,
    components: Sequence[str],
    architecture: str,
    backports: bool = False,
) -> Lock:
    """Ask the mirror for the newest packages that `wanted` and the essential packages need.

    Raises:
        MirrorError: it cannot be read, or lacks one of them.
    """
    sources = mirror.sources(suite, components)
    if backports:
        sources.append(f"deb [signed-by={KEYRING}] {mirror.url} {suite}-backports {' '.join(components)}")
    with toolbox.scratch("resolve") as folder:
        apt = configure(folder, sources, architecture, mirror.options)
        env = {"APT_CONFIG": str(apt)}
        try:
            update = ["apt-get", "-q", "--error-on=any", "update"]
            toolbox.run(update, write=[folder], env=env, network=True)
        except CommandError as error:
            raise MirrorError(
                f"{mirror.url} cannot be read. {last(str(error))}",
                hint="Check the network, or name another Debian mirror with --mirror or HOB_MIRROR.",
            ) from error
        ask = ["apt-get", "-qq", "--print-uris", "--yes", "--no-install-recommends", "install", "?essential"]
        try:
            told = toolbox.run([*ask, *wanted], write=[folder], env=env)
        except CommandError as error:
            raise MirrorError(
                f"the mirror has not all packages of the recipe. {last(str(error))}",
                hint="Correct the names under packages, firmware and kernel.",
            ) from error
        dates = [
            release_date(path.read_text(errors="replace"))
            for path in sorted((folder / "lists").glob("*Release"))
        ]
    packages = sorted(parse_uri(line, mirror) for line in told.splitlines() if line.startswith("'"))
    return Lock(suite, architecture, sorted(wanted), max(dates), packages, toolbox.versions())


def configure(folder: Path, sources: Iterable[str], architecture: str, options: Sequence[str]) -> Path:
    """An apt of its own in a folder: another architecture, nothing installed, these sources."""
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text("\n".join(sources) + "\n")
    config = folder / "apt.conf"
    lines = [
        f'APT::Architecture "{architecture}"',
        f'APT::Architectures "{architecture}"',
        f'Dir::State "{folder}"',
        f'Dir::State::status "{folder}/status"',
        f'Dir::State::lists "{folder}/lists"',
        f'Dir::Cache "{folder}"',
        f'Dir::Etc::sourcelist "{folder}/sources.list"',
        'Dir::Etc::sourceparts "/dev/null"',
        'APT::Sandbox::User ""',
        'Acquire::Languages "none"',
        'Acquire::ForceHash "SHA256"',
        *options,
    ]
    config.write_text("".join(f"{line};\n" for line in lines))
    return config


def release_date(text: str) -> int:
    """The `Date:` of a Release file, in seconds since 1970; 0 if it has none."""
    found = re.search(r"^Date: (.+)$", text, re.M)
    return int(parsedate_to_datetime(found[1]).timestamp()) if found else 0


def parse_uri(line: str, mirror: Mirror) -> Package:
    """A line of `apt-get --print-uris` as a package."""
    found = URI.match(line)
    if not found:
        raise MirrorError(f"apt names a package without its SHA-256: {line}")
    security = found["uri"].startswith(mirror.security + "/")
    base = mirror.security if security else mirror.url
    name, version, architecture = unquote(found["file"].removesuffix(".deb")).split("_")
    path = unquote(found["uri"].removeprefix(base + "/"))
    return Package(name, version, architecture, int(found["size"]), found["sha256"], path, security)


def last(text: str) -> str:
    """The lines of an apt error that say what is wrong; its warnings if it names no error."""
    for mark in ("E:", "W:"):
        if told := [line.removeprefix(mark).strip() for line in text.splitlines() if line.startswith(mark)]:
            return " ".join(told[:3])
    return text.splitlines()[-1]


def missing(lock: Lock, cache: Cache) -> list[Package]:
    """The packages of a lock that are not kept yet."""
    return [package for package in lock.packages if not kept(package, cache).exists()]


def kept(package: Package, cache: Cache) -> Path:
    """Where a package is kept: under its hash, so that what lies there is what the lock means."""
    return cache.root / "debs" / package.sha256[:2] / f"{package.sha256}.deb"


def fetch(toolbox: Toolbox, mirror: Mirror, lock: Lock, tell: Tell) -> None:
    """Download the packages of a lock that are not kept yet, and check each against the lock.

    Raises:
        MirrorError: the mirror no longer has one of them, or another file under its name.
        SpaceError: the disk is too small for them.
    """
    wanted = missing(lock, toolbox.cache)
    if not wanted:
        return
    total = sum(package.size for package in wanted)
    require_space(toolbox.cache.root, total + 200_000_000, "Keeping the packages")
    with toolbox.scratch("debs") as folder:
        # It tells of its progress on standard output, and lines are heard from the other.
        argv = ["sh", "-c", 'exec "$@" >&2', "-", "/usr/lib/apt/apt-helper", *proxy_options(mirror)]
        argv += ["-o", "APT::Sandbox::User=root", "download-file"]
        for package in wanted:
            base = mirror.security if package.security else mirror.url
            # A plus sign is a space to some servers.
            argv += [
                f"{base}/{quote(package.path)}",
                str(folder / package.sha256),
                f"SHA256:{package.sha256}",
            ]
        sizes = {package.name: package.size for package in wanted}
        done = 0

        def line(text: str) -> None:
            nonlocal done
            if found := re.match(r"Get:\d+ \S*/([^/_]+)_[^/]*\.deb", text):
                done += sizes.get(found[1], 0)
                tell("packages", f"{found[1]} ({len(wanted)} packages, {total / 1e6:.0f} MB)", done / total)

        try:
            toolbox.run(argv, write=[folder], network=True, line=line)
        except CommandError as error:
            raise MirrorError(
                f"the mirror does not give a package of the lock. {last(str(error))}",
                hint="Check the network. Mirrors drop old versions; --update takes the new ones.",
            ) from error
        for package in wanted:
            place = kept(package, toolbox.cache)
            place.parent.mkdir(parents=True, exist_ok=True)
            (folder / package.sha256).replace(place)


def proxy_options(mirror: Mirror) -> list[str]:
    """The mirror's apt settings as options of a command."""
    return [
        part for option in mirror.options for part in ("-o", "=".join(option.split(" ", 1)).replace('"', ""))
    ]


def repository(toolbox: Toolbox, lock: Lock, folder: Path) -> None:
    """Make a folder that apt can install the packages of a lock from.

    Raises:
        FormatError: a kept package is not what the lock says.
    """
    folder.mkdir(exist_ok=True)
    for package in lock.packages:
        source = kept(package, toolbox.cache)
        if file_digest(source) != package.sha256:
            source.unlink()
            raise FormatError(
                f"the kept {package.file} was damaged; it is removed", hint="Build again to fetch it."
            )
        os.link(source, folder / package.file)
    index = toolbox.run(["apt-ftparchive", "packages", "."], write=[folder], cwd=folder)
    (folder / "Packages").write_text(index)
    # Without the names of the suite mmdebstrap finds no essential packages.
    options = [f"-oAPT::FTPArchive::Release::{key}={lock.suite}" for key in ("Suite", "Codename")]
    release = toolbox.run(["apt-ftparchive", *options, "release", "."], write=[folder], cwd=folder)
    (folder / "Release").write_text(release)
