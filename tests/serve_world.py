"""A server in front of a model without weights, for the tests that speak to it."""

import base64
import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import openai
from fake_herd import FakeEngine, FakeModel
from fastapi import FastAPI
from PIL import Image

from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.serve import server as api
from herd.serve.models import one_model


@dataclass
class Running:
    model: FakeModel
    port: int

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def ask(self, text: object, **options: object) -> object:
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model="fake", messages=messages, **options)

    def raw(
        self, body: bytes, *, path: str = "/v1/chat/completions", method: str = "POST", **headers: str
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json"} | named)
        response = connection.getresponse()
        return response.status, response.read()


@contextmanager
def running_server() -> Iterator[Running]:
    model = FakeModel(delay_s=0.002)
    listener = api.listen("127.0.0.1", 0)
    engine = model.engine()
    app = api.create_app(
        one_model(AnswerPipeline(model, engine), name="fake", params=SamplingParams(top_p=0.9)),
        loopback_host="my-laptop",
    )
    with serving(app, engine, listener):
        yield Running(model, listener.getsockname()[1])
    assert engine.closed


@contextmanager
def serving(app: FastAPI, engine: FakeEngine, listener: socket.socket, **options: object) -> Iterator[api.Server]:
    """Yields the server, which has these options."""
    running = api.Server(app, engine, **options)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield running
    finally:
        running.should_exit = True
        thread.join(10)


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def picture(width: int, height: int) -> dict[str, object]:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "blue").save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()},
    }
