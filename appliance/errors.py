"""Every error the service raises on purpose: an HTTP status, a machine-readable code, a hint for people.

The shape on the wire is OpenAI's: `{"error": {"message", "type", "param", "code"}}`.
"""

from typing import ClassVar


class HobError(Exception):
    """Root of the tree.

    Attributes:
        status: HTTP status code.
        code: stable identifier for programs.
        type: OpenAI's error family for this status.
        param: the request field at fault, or None.
        hint: the next step for a person; empty when there is none.
        retry_after: seconds after which trying again makes sense, or None.
    """

    status: ClassVar[int] = 500
    code: str = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code

    @property
    def explanation(self) -> str:
        """The message as a sentence, and the hint."""
        sentence = self.message if self.message.endswith((".", "!", "?", "…")) else f"{self.message}."
        return f"{sentence} {self.hint}".rstrip()


class SettingsError(HobError):
    """A setting has a value it cannot have; the message names key, value and source."""

    code = "invalid_settings"


class StoreError(HobError):
    """The database cannot be opened, read or written; the message names the file."""

    code = "store_failed"


class InvalidRequestError(HobError):
    """A request field is missing, of the wrong type or out of range; `param` names it."""

    status = 400
    code = "invalid_value"
    type = "invalid_request_error"


class ContextLengthError(InvalidRequestError):
    """Prompt and answer do not fit the context window; the message has both numbers."""

    code = "context_length_exceeded"


class AuthenticationError(HobError):
    """No valid session or API key."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class PermissionDeniedError(HobError):
    """Known, but not allowed: foreign Host, foreign Origin, missing CSRF proof."""

    status = 403
    code = "forbidden"
    type = "permission_error"


class NotFoundError(HobError):
    """No such thing: chat, message, key, model, route."""

    status = 404
    code = "not_found"
    type = "invalid_request_error"


class UnknownModelError(NotFoundError):
    """No model of that name is installed."""

    code = "model_not_found"


class RequestTimeoutError(HobError):
    """The request body stopped arriving."""

    status = 408
    code = "request_timeout"
    type = "invalid_request_error"


class ConflictError(HobError):
    """Right in itself, but not now: something else is under way."""

    status = 409
    code = "conflict"
    type = "invalid_request_error"


class TooLargeError(HobError):
    """The request body is over the limit."""

    status = 413
    code = "request_too_large"
    type = "invalid_request_error"


class RateLimitError(HobError):
    """Too many attempts or requests; `retry_after` is set."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"


class EngineUnavailableError(HobError):
    """The engine process is starting, has died, or gave up; `retry_after` is set."""

    status = 503
    code = "engine_unavailable"
    type = "server_error"


class ModelLoadError(HobError):
    """The model is installed but cannot run: damaged, too large for memory, library refused."""

    status = 503
    code = "model_load_failed"
    type = "server_error"


class LibraryError(HobError):
    """The library of models cannot do what was asked; the message names the model or file."""

    code = "library_failed"


class DamagedError(LibraryError):
    """A file is not what its checksum, its manifest or its format says."""

    status = 422
    code = "model_damaged"


class DownloadError(HobError):
    """Another machine refused, stalled, or sent something else than it announced; names the address."""

    status = 502
    code = "download_failed"


class DiskFullError(HobError):
    """There is not enough room; the message says how much is missing."""

    status = 507
    code = "disk_full"


class TooLargeForMemoryError(HobError):
    """The model does not fit this machine's memory; the message has both figures."""

    status = 409
    code = "too_large_for_memory"


class StoppedError(HobError):
    """Somebody asked for an end before the work was done."""

    status = 499
    code = "stopped"


class DeviceError(ModelLoadError):
    """This device cannot run this model; another may. The engine stays as it is."""

    code = "device_failed"


class AdminError(HobError):
    """The device's own administration could not do what was asked, or there is none here."""

    code = "admin_failed"


class BackupError(HobError):
    """A file is no backup, is damaged, or cannot be used here; names the file."""

    status = 422
    code = "backup_unusable"
    type = "invalid_request_error"


class PassphraseError(BackupError):
    """The passphrase or identity does not open this backup."""

    status = 403
    code = "wrong_passphrase"


class UpdateError(HobError):
    """An update is refused, or could not be installed; the device stays as it is."""

    status = 422
    code = "update_refused"
    type = "invalid_request_error"
