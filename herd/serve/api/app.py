"""The application: every API over one loaded model, behind the limits of herd.serve.middleware."""

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.serve.api import anthropic, chat, completions, embeddings, moderations, responses, status, tokens
from herd.serve.metrics import Metrics
from herd.serve.middleware import BodyLimit, HostCheck, Meter, QueueLimit
from herd.serve.refusal import ApiError, Object, error_response, validation_error
from herd.serve.service import Service
from herd.serve.streams import INTERNAL

MAX_BODY_BYTES = 64 * 2**20
COMPUTED = frozenset({"generate", "embeddings", "moderations"})
"""Tags of the routes that the engine computes for."""


def create_app(
    pipeline: AnswerPipeline,
    *,
    name: str,
    params: SamplingParams | None = None,
    loopback_host: str | None = None,
    max_open: int = 1024,
    guard_name: str = "",
) -> FastAPI:
    """The application over one loaded model; `params` are the defaults of a request, `guard_name` is the name of the
    pipeline's guard.

    At most `max_open` requests that the engine computes for run or wait; `loopback_host` as HostCheck has it.
    """
    metrics = Metrics(pipeline.engine.stats)
    service = Service(
        pipeline=pipeline, name=name, params=params or SamplingParams(), metrics=metrics, guard_name=guard_name
    )
    # The interactive documentation of FastAPI loads its script from elsewhere, so it is off; /openapi.json is there.
    app = FastAPI(title="Herd", docs_url=None, redoc_url=None, openapi_url=None)
    apis = (chat, completions, responses, anthropic, embeddings, moderations, tokens)
    routers = [*status.routes(service), *(api.routes(service) for api in apis)]
    for router in routers:
        app.include_router(router)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(QueueLimit, paths=paths_of(routers, COMPUTED), most=max_open)
    app.add_middleware(HostCheck, loopback_host=loopback_host)
    app.add_middleware(Meter, metrics=metrics)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(HerdError, _on_herd_error)
    app.add_exception_handler(Exception, _on_failure)
    return app


def paths_of(routers: list[APIRouter], tags: frozenset[str]) -> frozenset[str]:
    """The paths of the routes with one of these tags."""
    routes = (route for router in routers if tags & set(router.tags) for route in router.routes)
    return frozenset(route.path for route in routes if isinstance(route, Route))


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.scope["path"])


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    kind = request.scope["endpoint"].__annotations__.get("body", Object)
    return await _on_api_error(request, validation_error(list(error.errors()), kind))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.scope['path']}: {error.detail}"
    return await _on_api_error(request, ApiError(message, status=error.status_code))


async def _on_herd_error(request: Request, error: Exception) -> Response:
    return await _on_api_error(request, ApiError(str(error)))


async def _on_failure(request: Request, error: Exception) -> Response:
    # Starlette raises the error again when this has been sent, and uvicorn logs it.
    return await _on_api_error(request, INTERNAL)
