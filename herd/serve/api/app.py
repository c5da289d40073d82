"""The application: every API over the models of a server, behind the limits of herd.serve.middleware."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from herd.errors import HerdError
from herd.serve.access import Access
from herd.serve.api import anthropic, chat, completions, embeddings, moderations, page, responses, status, tokens
from herd.serve.audit import AuditLog
from herd.serve.keys import Keys
from herd.serve.meter import Meter
from herd.serve.metrics import Metrics
from herd.serve.middleware import BodyLimit, HostCheck, Queue, QueueLimit
from herd.serve.models import EndLeases, Models
from herd.serve.pictures import Pictures
from herd.serve.refusal import ApiError, Object, error_response, validation_error
from herd.serve.service import Service
from herd.serve.streams import INTERNAL

MAX_BODY_BYTES = 64 * 2**20
METHODS = ("GET", "POST", "DELETE")
COMPUTED = frozenset({"generate", "embeddings", "moderations"})
"""Tags of the routes that the engine computes for."""


def create_app(
    models: Models,
    *,
    loopback_host: str | None = None,
    max_open: int = 1024,
    num_seqs: int = 32,
    guard_name: str = "",
    keys: Keys | None = None,
    cors_origins: Sequence[str] = (),
    picture_hosts: Sequence[str] = (),
    audit: AuditLog | None = None,
) -> FastAPI:
    """The application over these models; `guard_name` is the name of their guard. Without `keys` everyone who reaches
    it may ask; pages of `cors_origins` may ask from browsers; pictures at addresses of `picture_hosts` are fetched.

    At most `max_open` requests that the engine computes for run or wait, `num_seqs` of them run; `loopback_host` as
    HostCheck has it. `state.queue` of the application is its Queue.
    """
    # The interactive documentation of FastAPI loads its script from elsewhere, so it is off; /openapi.json is there.
    app = FastAPI(title="Herd", docs_url=None, redoc_url=None, openapi_url=None)
    queue = app.state.queue = Queue(most=max_open, num_seqs=num_seqs)
    metrics = Metrics(models.stats)
    service = Service(models=models, metrics=metrics, pictures=Pictures(picture_hosts), guard_name=guard_name)
    apis = (chat, completions, responses, anthropic, embeddings, moderations, tokens)
    routers = [page.routes(), *status.routes(service), *(api.routes(service) for api in apis)]
    for router in routers:
        app.routes.extend(router.routes)  # as they are, so that this list is the whole table
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(EndLeases)
    app.add_middleware(QueueLimit, paths=paths_of(routers, COMPUTED), queue=queue)
    app.add_middleware(Access, routes=app.routes, keys=keys)
    app.add_middleware(HostCheck, loopback_host=loopback_host)
    app.add_middleware(Meter, metrics=metrics, audit=audit)
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=cors_origins, allow_methods=METHODS, allow_headers=["*"])
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
