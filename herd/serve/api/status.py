"""What there is and whether it runs: health and readiness, the models, the description for machines."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from herd.serve.models import unknown_model
from herd.serve.service import Service


def routes(service: Service) -> list[APIRouter]:
    """Those that are open to everyone, the models, and the metrics."""
    public, models, metrics = APIRouter(tags=["public"]), APIRouter(tags=["models"]), APIRouter(tags=["metrics"])

    @public.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": service.models.default}

    @public.get("/ready")
    async def ready(request: Request) -> JSONResponse:
        is_draining = request.app.state.queue.is_draining
        if is_draining or not await service.models.is_ready():
            return JSONResponse({"status": "draining" if is_draining else "not ready"}, status_code=503)
        return JSONResponse({"status": "ready"})

    @models.get("/v1/models")
    async def all_models() -> dict[str, Any]:
        names = await service.models.names()
        page = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
        return {"object": "list", "data": [service.card(name) for name in names], **page}

    @models.get("/v1/models/{model_id:path}")
    async def one_model(model_id: str) -> dict[str, Any]:
        names = await service.models.names()
        if model_id not in names:
            raise unknown_model(model_id, names)
        return service.card(model_id)

    @models.get("/openapi.json", include_in_schema=False)
    async def description(request: Request) -> JSONResponse:
        return JSONResponse(request.app.openapi())

    @metrics.get("/metrics")
    async def all_metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return [public, models, metrics]
