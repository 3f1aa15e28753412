"""Set-up, sign-in and sign-out: the forms a stranger may send."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.errors import HobError
from appliance.security import Gate, sessions
from appliance.security.access import local_path
from webui.pages import LoginPage, SetupPage
from webui.responses import render


def routes(gate: Gate) -> list[Route]:
    """GET and POST of /setup and /login, POST /logout."""

    async def show_setup(request: Request) -> Response:
        if await gate.owner.exists():
            return RedirectResponse("/login", 303)
        return render(SetupPage(error=None))

    async def set_up(request: Request) -> Response:
        fields = await _fields(request)
        try:
            await gate.owner.set_up(fields.get("code", ""), fields.get("password", ""), _address(request))
        except HobError as error:
            return _retry_after(render(SetupPage(error=error.explanation), status=error.status), error)
        return await _sign_in(request, gate, "/backups#restore" if fields.get("then") == "restore" else "/")

    async def show_login(request: Request) -> Response:
        if not await gate.owner.exists():
            return RedirectResponse("/setup", 303)
        target = local_path(request.query_params.get("next"))
        return render(LoginPage(error=None, next=target))

    async def log_in(request: Request) -> Response:
        if not await gate.owner.exists():
            return RedirectResponse("/setup", 303)
        fields = await _fields(request)
        target = local_path(fields.get("next"))
        try:
            await gate.owner.check(fields.get("password", ""), _address(request))
        except HobError as error:
            page = LoginPage(error=error.explanation, next=target)
            return _retry_after(render(page, status=error.status), error)
        return await _sign_in(request, gate, target)

    async def log_out(request: Request) -> Response:
        await gate.sessions.close(request.cookies.get(sessions.COOKIE))
        response = RedirectResponse("/login", 303)
        sessions.clear_cookie(response, request)
        return response

    return [
        Route("/setup", show_setup, methods=["GET"]),
        Route("/setup", set_up, methods=["POST"]),
        Route("/login", show_login, methods=["GET"]),
        Route("/login", log_in, methods=["POST"]),
        Route("/logout", log_out, methods=["POST"]),
    ]


async def _fields(request: Request) -> dict[str, str]:
    """The text fields of a form; files are not among them."""
    async with request.form(max_files=0, max_fields=10) as form:
        return {name: value for name, value in form.items() if isinstance(value, str)}


async def _sign_in(request: Request, gate: Gate, target: str) -> Response:
    """Lead on with a new session; the one the browser brought, if any, ends (session fixation)."""
    await gate.sessions.close(request.cookies.get(sessions.COOKIE))
    response = RedirectResponse(target, 303)
    sessions.set_cookie(response, request, await gate.sessions.open(request.headers.get("user-agent", "")))
    return response


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _retry_after(response: Response, error: HobError) -> Response:
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response
