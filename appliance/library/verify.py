"""Compare a model's files with its manifest."""

from collections.abc import Callable
from dataclasses import dataclass

from appliance.errors import DamagedError
from appliance.library import manifest
from appliance.library.lock import in_use
from appliance.library.shelf import Entry, listed
from builder.compile.mlc import MLCDirectory
from builder.errors import BuildError


@dataclass(frozen=True)
class Finding:
    """A file that differs from the manifest: "damaged", "missing", "unreadable", or "unknown" to it."""

    file: str
    problem: str


def verify(
    entry: Entry, checked: Callable[[str, int, int], None] = lambda name, done, total: None
) -> list[Finding]:
    """Read every file of a model and say which differ. An empty list: the model is sound.

    A directory without a manifest is held against the checksums of its own weights only.
    `checked` is told the file's name, the bytes done before it and the bytes of all.

    Raises:
        ConflictError: the model is being removed.
    """
    if entry.problem:
        return [Finding(manifest.MANIFEST, entry.problem)]
    if entry.manifest is None:
        return _by_own_checksums(entry)
    findings, done, total = [], 0, entry.manifest.size
    with in_use(entry.path):
        for file in entry.manifest.files:
            checked(file.name, done, total)
            try:
                found = manifest.digest(entry.path / file.name)
            except FileNotFoundError:
                findings.append(Finding(file.name, "missing"))
            except OSError as error:
                findings.append(Finding(file.name, f"unreadable: {error.strerror}"))
            else:
                if found.sha256 != file.sha256:
                    findings.append(Finding(file.name, "damaged"))
            done += file.size
        names = {file.name for file in entry.manifest.files}
        findings += [
            Finding(path.name, "unknown")
            for path in sorted(entry.path.iterdir())
            if listed(path) and path.name not in names
        ]
    return findings


def ensure(entry: Entry) -> None:
    """Like `verify`, for those who cannot go on.

    Raises:
        DamagedError: a file is damaged; names all.
    """
    if wrong := [f"{found.file} ({found.problem})" for found in verify(entry) if found.problem != "unknown"]:
        raise DamagedError(
            f"{entry.path} is damaged: {', '.join(wrong)}", hint="Add the model again; that repairs it."
        )


def _by_own_checksums(entry: Entry) -> list[Finding]:
    try:
        MLCDirectory.open(entry.path).verify()
    except BuildError as error:
        return [Finding(entry.path.name, str(error))]
    return []
