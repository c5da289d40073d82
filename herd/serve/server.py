"""`herd serve`: models behind a port.

One engine of each model serves its requests; each is an `Engine.generate`, closed when its client goes away. Nothing is
fetched from other hosts, nothing is stored on disk. The routes are in herd.serve.api.
"""

import dataclasses
import math
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from herd.config import EngineConfig, ServeConfig
from herd.errors import HerdError
from herd.guard.stream import open_gate
from herd.serve.api.app import create_app
from herd.serve.audit import AuditLog
from herd.serve.channels.answer import PipelineAnswerer
from herd.serve.channels.config import read_config
from herd.serve.channels.delivery import Answerer
from herd.serve.channels.serve import channels_beside
from herd.serve.channels.upstream import UpstreamAnswerer
from herd.serve.exposure import fail_on_danger, find_exposure, report
from herd.serve.keys import VARIABLE, load_keys
from herd.serve.loading import model_sources, named_paths
from herd.serve.middleware import Queue, is_loopback
from herd.serve.models import LocalModels, Models
from herd.serve.upstream import Upstream
from herd.serve.upstream_client import VARIABLE as UPSTREAM_KEY
from herd.serve.upstream_client import UpstreamClient, check_url

SWITCH_S = 0.0002
"""After so long a thread gives way to one that waits. Python's own 5 ms are most of a small model's step."""


def serve(
    models: Sequence[str],
    server: ServeConfig,
    config: EngineConfig,
    *,
    base: Path | None = None,
    draft_model: Path | None = None,
    guard: Path | None = None,
    prompt_guard: Path | None = None,
    policy: Path | None = None,
) -> None:
    """Serve the models at `models`, each as PATH or NAME=PATH, until Ctrl-C, or until SIGTERM and the end of the
    running answers.

    `base` and `draft_model` are of the first model, `guard` is the folder of a guard of both sides, `prompt_guard` that
    of one that looks for injections, `policy` the file of what they block. Raises HerdError where the server would be
    open to others unasked.
    """
    # The engine's thread comes back from each forward to find the event loop at work; it waits for it so long at most.
    sys.setswitchinterval(SWITCH_S)
    if server.upstream:
        refuse_with_upstream(models, config, base, draft_model)
    host, keys = server.host, load_keys(server.api_keys)
    if server.tls:
        check_certificate(*server.tls)
    channels = read_config(server.channels) if server.channels else None
    if server.check:
        findings = list(
            find_exposure(
                models, server, address=resolve(host), keys=keys, guard=guard, prompt_guard=prompt_guard,
                channels=channels, max_num_seqs=config.max_num_seqs,
            )
        )  # fmt: skip
        print(report(findings), flush=True)
        fail_on_danger(findings)
        return
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
        key_names = [key.name for key in keys.keys] if keys else []
        gate = open_gate(guard, prompt_guard, policy, key_names=key_names, timeout_s=server.guard_timeout_s)
        if server.upstream:
            served: Models = Upstream(upstream_client(server), gate=gate)
            listed = f"the models of {server.upstream}"
        else:
            paths = named_paths(models)
            sources = model_sources(paths, config, gate=gate, base=base, draft_model=draft_model)
            served = local = LocalModels(sources, memory=server.memory, gate=gate)
            stack.callback(local.close)
            local.open_default()
            listed = ", ".join(f"{path} as {name!r}" for name, path in paths.items())
        app = create_app(
            served,
            guard_name=guard.resolve().name if guard else "",
            loopback_host=host if is_local else None,
            max_open=config.max_num_seqs + server.max_queued_requests,
            num_seqs=config.max_num_seqs,
            keys=keys,
            cors_origins=server.cors_origins,
            picture_hosts=server.picture_hosts,
            audit=audit,
        )
        if channels:
            if server.upstream:
                answerer: Answerer = UpstreamAnswerer(lambda: upstream_client(server), gate, channels.options)
            else:
                first = local.pin_default()
                answerer = PipelineAnswerer(first.pipeline, first.params, channels.options)
            stack.enter_context(channels_beside(app, channels, answerer))
        url = f"{'https' if server.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"Serving {listed}: chat at {url}, API at {url}/v1. Ctrl-C stops.", flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn has then ended in good order, and passes it on
            Server(app, served, drain_s=server.drain_s, tls=server.tls).run(sockets=[listener])


def refuse_with_upstream(models: Sequence[str], config: EngineConfig, *folders: Path | None) -> None:
    """Raises HerdError where options of a model of our own are given."""
    options = dataclasses.replace(config, max_num_seqs=EngineConfig().max_num_seqs)
    if models or any(folders) or options != EngineConfig():
        raise HerdError("--upstream answers: leave out models, --base, --draft-model and the options of the engine")


def upstream_client(server: ServeConfig) -> UpstreamClient:
    """A client of the server behind this one. Raises HerdError where its address is none."""
    key = os.environ.get(UPSTREAM_KEY)
    return UpstreamClient(check_url(server.upstream), key=key, timeout_s=server.upstream_timeout_s)


def check_certificate(certificate: Path, key: Path) -> None:
    """Raises HerdError where the two cannot be used."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise HerdError(
            f"--tls {certificate} {key} cannot be used ({reason}): name a certificate and its key"
        ) from None


class Closable(Protocol):
    """What ends with the server."""

    def close(self) -> None: ...


class Server(uvicorn.Server):
    """On Ctrl-C it ends the running answers with an error instead of waiting for them. Closes the models.

    After SIGTERM it is not ready any more and lets nothing more in, and ends once the running answers have, or after
    `drain_s`; a second signal ends it at once.
    """

    def __init__(
        self, app: FastAPI, models: Closable, *, drain_s: float = 0.0, tls: tuple[Path, Path] | None = None
    ) -> None:
        certificate, key = tls or (None, None)
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=2, ssl_certfile=certificate, ssl_keyfile=key
        )
        super().__init__(config)
        self._models, self._drain_s = models, drain_s
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
        self._models.close()
        await super().shutdown(sockets)


def resolve(host: str) -> str:
    """The address that `listen` would choose. Raises HerdError where the name means none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise HerdError(f"cannot listen on {host} ({error.strerror}): change --host") from None
    return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])


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
