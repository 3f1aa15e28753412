"""Errors as programs see them: OpenAI's shape, `{"error": {message, type, param, code}}`."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from appliance.errors import HobError, InvalidRequestError, NotFoundError


def body(error: HobError) -> dict[str, Any]:
    """An error as the JSON object OpenAI's clients understand; the hint is part of the message."""
    return {
        "error": {
            "message": error.explanation,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def response(error: HobError) -> JSONResponse:
    """An error as a response, with Retry-After where waiting helps."""
    answer = JSONResponse(body(error), error.status)
    if error.retry_after is not None:
        answer.headers["retry-after"] = str(error.retry_after)
    return answer


class MethodNotAllowedError(InvalidRequestError):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


def from_http(error: HTTPException) -> HobError:
    """What the router raises, as one of our errors; those it cannot be keep status 400."""
    if error.status_code == 404:
        return NotFoundError("there is nothing at this address")
    if error.status_code == 405:
        return MethodNotAllowedError("this address does not take this method")
    return InvalidRequestError(error.detail)
