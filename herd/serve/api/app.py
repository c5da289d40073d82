"""The application: every API over one loaded model, behind the limits of herd.serve.middleware."""

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.serve.api import chat, completions, status, tokens
from herd.serve.middleware import BodyLimit, HostCheck, QueueLimit
from herd.serve.refusal import ApiError, Object, error_response, validation_error
from herd.serve.service import Service
from herd.serve.streams import INTERNAL

MAX_BODY_BYTES = 64 * 2**20
COMPUTED = frozenset({"generate"})
"""Tags of the routes that the engine computes for."""


def create_app(
    pipeline: AnswerPipeline,
    *,
    name: str,
    params: SamplingParams | None = None,
    loopback_host: str | None = None,
    max_open: int = 1024,
) -> FastAPI:
    """The application over one loaded model; `params` are the defaults of a request.

    At most `max_open` requests that the engine computes for run or wait; `loopback_host` as HostCheck has it.
    """
    service = Service(pipeline=pipeline, name=name, params=params or SamplingParams())
    # The interactive documentation of FastAPI loads its script from elsewhere, so it is off; /openapi.json is there.
    app = FastAPI(title="Herd", docs_url=None, redoc_url=None, openapi_url=None)
    routers = [*status.routes(service), chat.routes(service), completions.routes(service), tokens.routes(service)]
    for router in routers:
        app.include_router(router)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(QueueLimit, paths=paths_of(routers, COMPUTED), most=max_open)
    app.add_middleware(HostCheck, loopback_host=loopback_host)
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
