"""Hugging Face: what is in a repository, by its own client. HF_ENDPOINT names a mirror, HF_TOKEN a token."""

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from appliance.errors import AuthenticationError, DownloadError, HobError, LibraryError
from appliance.library.choose import Form, choose
from appliance.library.remote import BrokenOffError, Patience, Remote, patiently
from appliance.library.source import Hub

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo


def look(source: Hub, token: str, patience: Patience) -> tuple["ModelInfo", str]:
    """A repository's description with every file's size and checksum, and the hub's address.

    `token` "" means the one that HF_TOKEN or `hf auth login` has set, if any.

    Raises:
        AuthenticationError: the repository wants a token, or its licence accepted.
        DownloadError: it does not exist, or the hub does not answer.
    """
    from huggingface_hub import HfApi, constants, errors  # half a second that only a download is worth

    api = HfApi(endpoint=constants.ENDPOINT, token=token or None)
    hub = api.endpoint
    name = source.repository + (f"@{source.revision}" if source.revision else "")

    def ask() -> "ModelInfo":
        try:
            return api.model_info(
                source.repository,
                revision=source.revision or None,
                files_metadata=True,
                timeout=patience.silence,
            )
        except errors.HfHubHTTPError as error:
            if (status := error.response.status_code) == 429 or status >= 500:
                raise BrokenOffError(f"it answers {status}") from error
            raise

    try:
        found = patiently(ask, f"{hub} does not describe {name}", patience)
    except errors.HfHubHTTPError as error:
        raise _explained(error, source, hub) from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(
            "HF_HUB_OFFLINE is set", hint="Unset it, or add the model from a file."
        ) from error
    except errors.HFValidationError as error:
        raise DownloadError(f"{name} is not a repository's name", hint="Ids look like owner/name.") from error
    if found.gated and not _authorization(token):
        raise gated(source, hub)
    return found, hub


def _explained(error: "HfHubHTTPError", source: Hub, hub: str) -> HobError:
    """What the hub refused, and what to do about it."""
    from huggingface_hub import errors

    status, repository = error.response.status_code, source.repository
    if isinstance(error, errors.GatedRepoError):
        return gated(source, hub)
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            f"{repository} has no revision {source.revision!r}", hint=f"See {hub}/{repository}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(
            f"{hub} has no {repository}, or shows it only to some",
            hint="Check the name. A private one needs a token: --key-file FILE.",
        )
    if status in (401, 403):
        return AuthenticationError(
            f"{hub} does not show {repository} ({status})", hint="Is the token right? --key-file FILE."
        )
    return DownloadError(f"{hub} answers {status} for {repository}")


def gated(source: Hub, hub: str) -> AuthenticationError:
    """What to do about a repository that is not for everybody."""
    return AuthenticationError(
        f"{source.repository} is given only to those who accepted its licence",
        hint=f"Accept it at {hub}/{source.repository}, make a token, and give it: --key-file FILE.",
    )


def remotes(
    source: Hub, found: "ModelInfo", hub: str, token: str
) -> tuple[Form, tuple[Remote, ...], frozenset[str]]:
    """Form, files to fetch (pinned to the commit), and which of them are weights, by their names here.

    Raises:
        LibraryError, InvalidRequestError: as `choose`.
        DownloadError: the hub does not tell commit or size.
    """
    siblings = {sibling.rfilename: sibling for sibling in found.siblings or ()}
    sizes = {name: sibling.size or 0 for name, sibling in siblings.items()}
    choice = choose(sizes, source.repository, source.choice)
    if not found.sha or any(siblings[name].size is None for name in choice.files):
        raise DownloadError(f"{hub} does not tell the commit and sizes of {source.repository}")
    headers = _authorization(token)
    files = []
    for name in choice.files:
        sibling = siblings[name]
        checksum: Any = sibling.lfs.sha256 if sibling.lfs else ""
        files.append(
            Remote(
                url=f"{hub}/{source.repository}/resolve/{quote(found.sha, safe='')}/{quote(name)}",
                name=Path(name).name,
                size=sibling.size,
                sha256=str(checksum),
                git="" if checksum else str(sibling.blob_id or ""),
                headers=headers,
            )
        )
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        raise LibraryError(f"{source.repository} has several files called {max(names, key=names.count)}")
    return choice.form, tuple(files), frozenset(Path(name).name for name in choice.weights)


def licence(found: "ModelInfo") -> str:
    """The licence as its publisher names it; "" when nobody told."""
    card: Any = found.card_data
    told = card.get("license_name") or card.get("license") if card else None
    if not told:
        told = next((tag.partition(":")[2] for tag in found.tags or () if tag.startswith("license:")), "")
    return ", ".join(map(str, told)) if isinstance(told, list) else str(told)


def _authorization(token: str) -> dict[str, str]:
    """The header for a hub's files; none without a token."""
    from huggingface_hub import get_token

    token = token or get_token() or ""
    return {"authorization": f"Bearer {token}"} if token else {}
