"""The smallest OpenAI-compatible server: models, chat completions with pictures and tools, streaming, and a chat page.

One engine serves all requests; each is an `Engine.generate`, closed when its client goes away. Nothing is fetched from
other hosts, nothing is stored, and no key is checked: it listens on this machine unless configured otherwise.
"""

import asyncio
import dataclasses
import logging
import socket
import sys
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Send

from herd.config import EngineConfig
from herd.config.engine import DEFAULT_MAX_MODEL_LEN
from herd.engine.engine import Engine
from herd.engine.model import LoadedModel
from herd.engine.pipeline import AnswerPipeline, collect
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.plan.counts import cache_bytes
from herd.serve.completion import prepare_completion
from herd.serve.generation_config import default_params
from herd.serve.middleware import BodyLimit, HostCheck, QueueLimit, caller_of, is_loopback, refusal, salt_of
from herd.serve.refusal import ApiError, validation_error
from herd.serve.responses import INTERNAL, events
from herd.serve.schema import FIELDS, ChatRequest

log = logging.getLogger("herd.serve")
T = TypeVar("T")

MAX_BODY_BYTES = 64 * 2**20
PAGE = Path(__file__).parent / "web" / "index.html"
# The page holds its style and script; model text must not be able to load or run anything even if it got past it.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SWITCH_S = 0.0002
"""After so long a thread gives way to one that waits. Python's own 5 ms are most of a small model's step."""
WHOLE_REQUESTS = 8
"""The cache has room for so many requests of 8,192 tokens if not set; most are shorter, and more run."""
COMPLETIONS = "/v1/chat/completions"


def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    config: EngineConfig,
    max_queued_requests: int = 128,
    base: Path | None = None,
    draft_model: Path | None = None,
) -> None:
    """Serve the model in `folder` until Ctrl-C. Port 0 takes a free one."""
    from herd.engine.load import load

    if max_queued_requests < 0:
        raise HerdError(f"--max-queued-requests {max_queued_requests} must not be negative")
    # The engine's thread comes back from each forward to find the event loop at work; it waits for it so long at most.
    sys.setswitchinterval(SWITCH_S)
    listener = listen(host, port)
    with listener:
        address, port = listener.getsockname()[:2]
        name = folder.resolve().name
        model = load(folder, base=base)
        if config.kv_cache_memory_bytes is None:
            config = dataclasses.replace(config, kv_cache_memory_bytes=default_cache_bytes(model, config))
        engine = Engine(model, config, draft_model=load(draft_model) if draft_model else None)
        app = create_app(
            AnswerPipeline(model, engine),
            name=name,
            params=default_params(folder, base=base),
            loopback_host=host if is_loopback(address) else None,
            max_open=config.max_num_seqs + max_queued_requests,
        )
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"Serving {folder} as {name!r}: chat at {url}, API at {url}/v1. Ctrl-C stops.", flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn has then ended in good order, and passes it on
            Server(app, engine).run(sockets=[listener])


def default_cache_bytes(model: LoadedModel, config: EngineConfig) -> int:
    """Room for WHOLE_REQUESTS of the usual context, and for one of `max_model_len` at least."""
    number_bytes = model.transformer.embedding.weight.itemsize

    def room(context: int) -> int:
        int8 = config.kv_cache_dtype == "int8"
        return cache_bytes(model.config, context, number_bytes=number_bytes, int8=int8)

    usual = min(model.config.max_positions, DEFAULT_MAX_MODEL_LEN)
    longest = config.max_model_len or usual
    return max(room(longest), min(config.max_num_seqs, WHOLE_REQUESTS) * room(min(usual, longest)))


class Server(uvicorn.Server):
    """On shutdown it ends the running answers with an error instead of waiting for them. Closes the engine."""

    def __init__(self, app: FastAPI, engine: Engine) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the model is loaded so that a port in use is reported at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        # IPv4 first: what a browser makes of "localhost" is tried in both. The port as given: 70000 passes above.
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        # With the protocol named; without it asyncio leaves TCP_NODELAY off, and a response's second write waits 40 ms.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port, *address[2:]))
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise HerdError(f"cannot listen on {host} port {port} ({reason}): change --host or --port") from None


def create_app(
    pipeline: AnswerPipeline,
    *,
    name: str,
    params: SamplingParams | None = None,
    loopback_host: str | None = None,
    max_open: int = 1024,
) -> FastAPI:
    """The application over one loaded model; `params` are the defaults of a request.

    At most `max_open` completions run or wait; `loopback_host` as HostCheck has it.
    """
    created = int(time.time())
    card = {"id": name, "object": "model", "created": created, "owned_by": "herd"}
    page = PAGE.read_text(encoding="utf-8")
    params = params or SamplingParams()

    # The interactive documentation of FastAPI loads its script from elsewhere, so it is off; /openapi.json is there.
    app = FastAPI(title="Herd", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(QueueLimit, path=COMPLETIONS, most=max_open)
    app.add_middleware(HostCheck, loopback_host=loopback_host)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(HerdError, _on_herd_error)
    app.add_exception_handler(Exception, _on_failure)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": name}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model_id:path}")
    async def one_model(model_id: str) -> dict[str, Any]:
        _check_model(name, model_id)
        return card

    @app.post(COMPLETIONS)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        _check_model(name, body.model)
        completion = await cancel_on_disconnect(request, prepare_completion(pipeline, body, params, name=name))
        streams = completion.streams(pipeline, caller=caller_of(request), salt=salt_of(request, body.cache_salt))
        if body.stream:
            return EventStream(
                events(
                    streams,
                    completion.head,
                    num_prompt=completion.num_prompt_tokens,
                    with_usage=body.with_usage,
                    tokenizer=completion.tokenizer,
                )
            )
        return JSONResponse(completion.body(await cancel_on_disconnect(request, collect(streams))))

    return app


def _check_model(name: str, asked: str) -> None:
    if asked != name:
        raise ApiError(
            f"the model {asked!r} is not served here: use {name!r}", status=404, param="model", code="model_not_found"
        )


class EventStream(StreamingResponse):
    """Server-sent events whose generator is closed, and with it the generation, however the response ends."""

    def __init__(self, lines: AsyncGenerator[str, None]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._lines = lines

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._lines):
            await super().stream_response(send)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            # Nobody reads this; 499 is how servers log it.
            raise ApiError("the client went away", status=499)
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refusal(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _on_api_error(request, validation_error(list(error.errors()), FIELDS))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.scope['path']}: {error.detail}"
    return await _on_api_error(request, ApiError(message, status=error.status_code))


async def _on_herd_error(request: Request, error: Exception) -> Response:
    return await _on_api_error(request, ApiError(str(error)))


async def _on_failure(request: Request, error: Exception) -> Response:
    # Starlette raises the error again when this has been sent, and uvicorn logs it.
    return await _on_api_error(request, INTERNAL)
