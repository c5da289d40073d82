"""`herd serve`: a model folder behind a port.

One engine serves all requests; each is an `Engine.generate`, closed when its client goes away. Nothing is fetched from
other hosts, nothing is stored on disk. The routes are in herd.serve.api.
"""

import dataclasses
import math
import signal
import socket
import ssl
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from herd.config import EngineConfig, ServeConfig
from herd.config.engine import DEFAULT_MAX_MODEL_LEN
from herd.engine.engine import Engine
from herd.engine.model import LoadedModel
from herd.engine.pipeline import AnswerPipeline
from herd.errors import HerdError
from herd.guard.model_guard import Guard
from herd.guard.stream import GuardGate
from herd.plan.counts import cache_bytes
from herd.serve.api.app import create_app
from herd.serve.audit import AuditLog
from herd.serve.channels.answer import PipelineAnswerer
from herd.serve.channels.config import read_config
from herd.serve.channels.serve import channels_beside
from herd.serve.generation_config import default_params
from herd.serve.keys import VARIABLE, load_keys
from herd.serve.middleware import Queue, is_loopback

SWITCH_S = 0.0002
"""After so long a thread gives way to one that waits. Python's own 5 ms are most of a small model's step."""
WHOLE_REQUESTS = 8
"""The cache has room for so many requests of 8,192 tokens if not set; most are shorter, and more run."""


def serve(
    folder: Path,
    server: ServeConfig,
    config: EngineConfig,
    *,
    base: Path | None = None,
    draft_model: Path | None = None,
    guard: Path | None = None,
) -> None:
    """Serve the model in `folder` until Ctrl-C, or until SIGTERM and the end of the running answers.

    `guard`: folder of a guard of both sides. Raises HerdError where it would be open to others unasked.
    """
    from herd.engine.load import load

    # The engine's thread comes back from each forward to find the event loop at work; it waits for it so long at most.
    sys.setswitchinterval(SWITCH_S)
    host, keys = server.host, load_keys(server.api_keys)
    if server.tls:
        check_certificate(*server.tls)
    channels = read_config(server.channels) if server.channels else None
    listener = listen(host, server.port)
    with listener, ExitStack() as stack:
        address, port = listener.getsockname()[:2]
        is_local = is_loopback(address)
        if not is_local and keys is None and not server.without_keys:
            raise HerdError(
                f"--host {host} lets everyone who reaches this machine ask: set --api-keys FILE or {VARIABLE}, or "
                "--without-keys if a proxy checks who asks"
            )
        audit = AuditLog(server.audit_log, contents=server.audit_contents) if server.audit_log else None
        name = folder.resolve().name
        model = load(folder, base=base)
        if config.kv_cache_memory_bytes is None:
            config = dataclasses.replace(config, kv_cache_memory_bytes=default_cache_bytes(model, config))
        engine = Engine(model, config, draft_model=load(draft_model) if draft_model else None)
        gate = GuardGate(Guard(guard)) if guard else None
        pipeline, params = AnswerPipeline(model, engine, gate=gate), default_params(folder, base=base)
        app = create_app(
            pipeline,
            name=name,
            guard_name=guard.resolve().name if guard else "",
            params=params,
            loopback_host=host if is_local else None,
            max_open=config.max_num_seqs + server.max_queued_requests,
            num_seqs=config.max_num_seqs,
            keys=keys,
            cors_origins=server.cors_origins,
            audit=audit,
        )
        if channels:
            stack.enter_context(channels_beside(app, channels, PipelineAnswerer(pipeline, params, channels.options)))
        url = f"{'https' if server.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"Serving {folder} as {name!r}: chat at {url}, API at {url}/v1. Ctrl-C stops.", flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn has then ended in good order, and passes it on
            Server(app, engine, drain_s=server.drain_s, tls=server.tls).run(sockets=[listener])


def check_certificate(certificate: Path, key: Path) -> None:
    """Raises HerdError where the two cannot be used."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise HerdError(
            f"--tls {certificate} {key} cannot be used ({reason}): name a certificate and its key"
        ) from None


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
    """On Ctrl-C it ends the running answers with an error instead of waiting for them. Closes the engine.

    After SIGTERM it is not ready any more and lets nothing more in, and ends once the running answers have, or after
    `drain_s`; a second signal ends it at once.
    """

    def __init__(
        self, app: FastAPI, engine: Engine, *, drain_s: float = 0.0, tls: tuple[Path, Path] | None = None
    ) -> None:
        certificate, key = tls or (None, None)
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=2, ssl_certfile=certificate, ssl_keyfile=key
        )
        super().__init__(config)
        self._engine, self._drain_s = engine, drain_s
        self._queue: Queue = app.state.queue
        self._deadline_s = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self._drain_s and not self._queue.is_draining:
            self._queue.is_draining = True
            self._deadline_s = time.monotonic() + self._drain_s
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._queue.is_draining and (not self._queue.num_open or time.monotonic() > self._deadline_s):
            return True
        return await super().on_tick(counter)

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
