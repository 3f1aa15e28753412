"""What programs may know of this Hob: `GET /api/system`, the `Overview` as JSON."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.overview import Observer


def routes(observer: Observer) -> list[Route]:
    """GET /api/system, for callers that the gate knows."""

    async def system(request: Request) -> Response:
        overview = await observer.look()
        return Response(overview.model_dump_json(), media_type="application/json")

    return [Route("/api/system", system, methods=["GET"])]
