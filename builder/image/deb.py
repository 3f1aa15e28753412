"""The Debian package: the tree that images get, for a Debian 13 that is there already.

It has Hob in /opt/hob, the units of the service, its engine and its backups, and nothing of what makes a
device of a computer: no slots, no set-up of the network. Archive and control files are as Debian's policy
manual (chapters 3, 5, 6 and 10) and deb(5) say.
"""

import gzip
import os
import re
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path

from builder.errors import FormatError
from builder.image.overlay import copy_tree, settle
from builder.image.recipe import LINKER
from builder.image.toolbox import Toolbox

NAME = "hob"
MAINTAINER = "Hob <hob@packages.invalid>"
"""Debian demands a name with an address. Nobody reads mail here, and the address says so."""

SERVICES = (
    "hob-engine.socket",
    "hob-engine.service",
    "hob.service",
    "hob-backup.timer",
    "hob-backup.service",
)
"""The units that go into the package, in the order in which they start."""

ENABLED = ("hob-engine.socket", "hob.service", "hob-backup.timer")

DEPENDS = (
    "python3 (>= 3.13), python3 (<< 3.14)",  # what the wheels and the bytecode are for
    "libc6 (>= 2.41)",
    "libgcc-s1",
    "libstdc++6",
    "ca-certificates",
    "systemd | systemd-standalone-sysusers",
    "systemd | systemd-standalone-tmpfiles",
)

DESCRIPTION = """\
offline LLM appliance for the home network
 Hob answers questions on this machine, for everyone on the local network, and
 nothing that is said to it leaves the house. It has pages for the browser and
 the interfaces of OpenAI for programs.
 .
 A small model that explains Hob itself is part of the package; others are
 added from the page or by "hob model add"."""

OVERRIDES = """\
# An add-on package of another vendor has its place in /opt (FHS 3.0, 3.13). Python's packages come from the
# Python Package Index, in the versions that Hob was tested with, as they were built there.
hob: dir-or-file-in-opt
hob: custom-library-search-path
hob: embedded-library
hob: library-not-linked-against-libc
hob: unstripped-binary-or-object
# All of it is compiled when the package is made, by the very Python it depends on.
hob: package-installs-python-pycache-dir
# Its name says what each library is for, and whoever loads one looks: they may lie side by side.
hob: arch-dependent-file-in-usr-share
"""

POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ] || [ "$1" = abort-upgrade ] || [ "$1" = abort-remove ]; then
    systemd-sysusers ${DPKG_ROOT:+--root="$DPKG_ROOT"} hob.conf
    systemd-tmpfiles ${DPKG_ROOT:+--root="$DPKG_ROOT"} --create hob.conf || true
    for unit in @ENABLED@; do
        # What the owner has disabled stays so.
        if deb-systemd-helper --quiet was-enabled "$unit"; then
            deb-systemd-helper enable "$unit" >/dev/null || true
        else
            deb-systemd-helper update-state "$unit" >/dev/null || true
        fi
    done
    if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        deb-systemd-invoke start @ENABLED@ >/dev/null || true
    fi
fi
"""

PRERM = """\
#!/bin/sh
set -e
# For an upgrade too: a service that runs would go on with a mixture of old and new files.
if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop @STOPPED@ >/dev/null || true
fi
"""

POSTRM = """\
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    # Chats, keys and models. The users stay, so that nobody else ever gets their numbers.
    rm -rf "${DPKG_ROOT:-}/var/lib/hob"
    deb-systemd-helper purge @ENABLED@ >/dev/null || true
fi
if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
"""

COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Hob
Comment: Each of Python's packages has its own licence in the folder .dist-info
 beside it, under /opt/hob.

Files: *
Copyright: Hob's authors
License: Apache-2.0
 On Debian systems the text of the license is in
 /usr/share/common-licenses/Apache-2.0.
"""


def build(
    out: Path,
    *,
    overlay: Path,
    checkout: Path,
    architecture: str,
    version: str,
    compiler: bool,
    epoch: int,
    toolbox: Toolbox,
) -> Path:
    """Write the package `out`; two calls with the same arguments write the same bytes.

    Args:
        overlay: the tree of `overlay.build`, without files of a device's system.
        checkout: Hob's sources, whose documentation comes along.
        architecture: Debian's name of it.
        version: Hob's; see `debian_version`.
        compiler: whether the tree has the compiler, which then needs a linker.
        epoch: time of all files, in seconds since 1970.

    Raises:
        FormatError: Debian has no way to write the version.
        CommandError: dpkg-deb failed.
    """
    with toolbox.scratch("deb") as scratch:
        tree = scratch / "tree"
        copy_tree(overlay, tree)
        for folder in ("lib/systemd/system", "lib/sysusers.d", "lib/tmpfiles.d"):
            assert (tree / "usr" / folder).is_dir()
        for unit in sorted((tree / "usr/lib/systemd/system").iterdir()):
            if unit.name not in SERVICES:
                unit.unlink()
        documents(tree, checkout, debian_version(version), epoch)
        control(tree, architecture, debian_version(version), compiler=compiler)
        settle(tree, epoch)
        for script in ("postinst", "prerm", "postrm"):
            (tree / "DEBIAN" / script).chmod(0o755)
            os.utime(tree / "DEBIAN" / script, (epoch, epoch))
        made = scratch / out.name
        toolbox.run(
            [
                *("dpkg-deb", "--build", "--root-owner-group", "-Zxz", "-z2"),
                *(tree, made),
            ],
            write=[scratch],
            env={"SOURCE_DATE_EPOCH": str(epoch)},
        )
        os.replace(made, out)
    return out


def debian_version(version: str) -> str:
    """A version of Python's (PEP 440) as Debian orders it: what comes before a release is less than it.

    Raises:
        FormatError: it is none.
    """
    found = re.fullmatch(
        r"(\d+(?:\.\d+)*)(?:\.?(a|b|rc|dev)(\d+))?(?:\.post(\d+))?(?:\+([a-z0-9.]+))?", version
    )
    if not found:
        raise FormatError(f"{version!r} is no version", hint="Versions look like 1.2.0 or 1.2.0rc1.")
    release, stage, number, post, local = found.groups()
    before = f"~{stage}{number}" if stage else ""
    return f"{release}{before}{f'+post{post}' if post else ''}{f'+{local}' if local else ''}"


def control(tree: Path, architecture: str, version: str, *, compiler: bool) -> None:
    """Write the folder DEBIAN: what dpkg knows of the package, and what it runs."""
    folder = tree / "DEBIAN"
    size = sum(max(1, -(-path.lstat().st_size // 1024)) for path in tree.rglob("*") if not path.is_dir())
    folder.mkdir()
    depends = [*DEPENDS, *([LINKER] if compiler else [])]
    fields = {
        "Package": NAME,
        "Version": version,
        "Architecture": architecture,
        "Maintainer": MAINTAINER,
        "Installed-Size": str(size),
        "Depends": ", ".join(depends),
        "Pre-Depends": "init-system-helpers (>= 1.54~)",
        "Section": "misc",
        "Priority": "optional",
        "Description": DESCRIPTION,
    }
    text = "".join(f"{name}: {value}\n" for name, value in fields.items())
    (folder / "control").write_text(text, encoding="utf-8")
    if settings := sorted(path for path in (tree / "etc").rglob("*") if path.is_file()):
        names = "".join(f"/{path.relative_to(tree).as_posix()}\n" for path in settings)
        (folder / "conffiles").write_text(names, encoding="utf-8")
    words: Mapping[str, str] = {
        "@ENABLED@": " ".join(ENABLED),
        "@STOPPED@": " ".join(("hob.service", "hob-backup.timer", "hob-engine.socket", "hob-engine.service")),
    }
    for name, script in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        for word, value in words.items():
            script = script.replace(word, value)
        (folder / name).write_text(script, encoding="utf-8")


def documents(tree: Path, checkout: Path, version: str, epoch: int) -> None:
    """Write what every package has in /usr/share/doc, Hob's own documentation, and lintian's exceptions."""
    folder = tree / "usr/share/doc" / NAME
    folder.mkdir(parents=True)
    (folder / "copyright").write_text(COPYRIGHT, encoding="utf-8")
    when = formatdate(epoch)
    entry = (
        f"{NAME} ({version}) trixie; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {MAINTAINER}  {when}\n"
    )
    (folder / "changelog.gz").write_bytes(gzip.compress(entry.encode(), 9, mtime=0))
    for page in (
        checkout / "README.md",
        checkout / "CHANGELOG.md",
        *sorted((checkout / "docs").glob("*.md")),
    ):
        (folder / page.name).write_bytes(page.read_bytes())
    overrides = tree / "usr/share/lintian/overrides" / NAME
    overrides.parent.mkdir(parents=True)
    overrides.write_text(OVERRIDES, encoding="utf-8")
