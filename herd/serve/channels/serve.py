"""`herd channels serve`: a model behind the webhooks, and nothing else.

The address can be open to all: what is not signed by Meta is refused, and there is no other route.
"""

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from herd.config import EngineConfig
from herd.errors import HerdError
from herd.serve.channels.config import ChannelsConfig, read_config
from herd.serve.channels.delivery import Answerer
from herd.serve.channels.service import running_channels


def serve(
    folder: Path,
    path: Path,
    *,
    host: str,
    port: int,
    config: EngineConfig,
    base: Path | None = None,
    guard: Path | None = None,
    prompt_guard: Path | None = None,
    policy: Path | None = None,
) -> None:
    """Answer on the channels of the channels.toml at `path` with the model in `folder`, until Ctrl-C or SIGTERM.

    The folders `guard` and `prompt_guard`, and the file `policy`, are those of `herd serve`: nobody has a key here, so
    a policy has no exceptions by key. Raises HerdError where one of them cannot be used.
    """
    channels = read_config(path)
    listener = _listen(host, port)
    from herd.engine.engine import Engine
    from herd.engine.load import load
    from herd.engine.pipeline import AnswerPipeline
    from herd.guard.stream import open_gate
    from herd.serve.channels.answer import PipelineAnswerer
    from herd.serve.generation_config import default_params

    with listener:
        gate = open_gate(guard, prompt_guard, policy)
        model, params = load(folder, base=base), default_params(folder, base=base)
        engine = Engine(model, config)
        try:
            answerer = PipelineAnswerer(AnswerPipeline(model, engine, gate=gate), params, channels.options)
            names = ", ".join(f"/webhooks/{name}" for name in channels.accounts)
            address = f"http://{host}:{listener.getsockname()[1]}"
            print(f"Answering with {folder}: {address} has {names}. Ctrl-C stops.", flush=True)
            run(channels, answerer, listener)
        finally:
            engine.close()


def run(config: ChannelsConfig, answerer: Answerer, listener: socket.socket) -> None:
    """Serve until a signal. What is being sent then is waited for; what was not answered yet is at the next start."""

    app = Starlette()
    with channels_beside(app, config, answerer), suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[listener])


@contextmanager
def channels_beside(app: Starlette, config: ChannelsConfig, answerer: Answerer) -> Iterator[None]:
    """Answer on the channels while within, with their webhooks in front of all that `app` has by now."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    # uvicorn raises the signal again when it has ended; the default would end the process before the delivery.
    signal.signal(signal.SIGTERM, leave)
    with running_channels(config, answerer) as channels:
        channels.install(app)
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise HerdError(f"cannot listen on {host} port {port} ({error}): change --host or --port") from None
