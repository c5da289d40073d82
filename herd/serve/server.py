"""`herd serve`: a model folder behind a port.

One engine serves all requests; each is an `Engine.generate`, closed when its client goes away. Nothing is fetched from
other hosts, nothing is stored on disk. The routes are in herd.serve.api.
"""

import dataclasses
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from herd.config import EngineConfig
from herd.config.engine import DEFAULT_MAX_MODEL_LEN
from herd.engine.engine import Engine
from herd.engine.model import LoadedModel
from herd.engine.pipeline import AnswerPipeline
from herd.errors import HerdError
from herd.guard.model_guard import Guard
from herd.guard.stream import GuardGate
from herd.plan.counts import cache_bytes
from herd.serve.api.app import create_app
from herd.serve.generation_config import default_params
from herd.serve.middleware import is_loopback

SWITCH_S = 0.0002
"""After so long a thread gives way to one that waits. Python's own 5 ms are most of a small model's step."""
WHOLE_REQUESTS = 8
"""The cache has room for so many requests of 8,192 tokens if not set; most are shorter, and more run."""


def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    config: EngineConfig,
    max_queued_requests: int = 128,
    base: Path | None = None,
    draft_model: Path | None = None,
    guard: Path | None = None,
) -> None:
    """Serve the model in `folder` until Ctrl-C. Port 0 takes a free one. `guard`: folder of a guard of both sides."""
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
        gate = GuardGate(Guard(guard)) if guard else None
        app = create_app(
            AnswerPipeline(model, engine, gate=gate),
            name=name,
            guard_name=guard.resolve().name if guard else "",
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
