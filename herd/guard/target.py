"""What is attacked, asked or asks: a model folder, or a server that speaks OpenAI's chat completions.

`open_target(place)` opens either; `ask` gives an `Answer`, whose `failure` is named where there is no whole text. It
never raises for what the other side does, so that one bad answer does not end a run of thousands. A server is reached
by one connection for each question, straight to the address that was given: no proxy, no redirect, no other host.
Left out: streaming, pictures and tools.
"""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from herd.errors import HerdError

if TYPE_CHECKING:
    from herd.engine.load import Model

Failure = Literal["refused connection", "dropped connection", "hung", "error status", "garbage", "empty", "blocked"]
"""Why an answer is no whole text. `hung`: not whole within `timeout_s`. `error status`: an HTTP status of 300 or more,
or an error of the engine. `garbage`: not the JSON of a chat completion, or too long. `blocked`: ended by a filter."""
Messages = Sequence[Mapping[str, str]]
"""OpenAI's: `role` and `content`."""

MAX_BODY_BYTES = 4 * 2**20
"""Of a server's answer."""
MAX_DETAIL = 200
"""Characters of a server's words in `detail`."""


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """How a target is asked."""

    temperature: float = 0.0
    """0: always the likeliest token."""
    max_tokens: int = 256
    """Longest answer, in tokens."""
    timeout_s: float = 60.0
    """Time for one whole answer."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise HerdError(f"temperature={self.temperature} must be in [0, 2]")
        if self.max_tokens < 1 or not self.timeout_s > 0:
            raise HerdError(f"max_tokens={self.max_tokens} and timeout_s={self.timeout_s} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back from one question."""

    text: str = ""
    """The whole answer; of one that was blocked or hung, what came of it, if that is known."""
    failure: Failure | None = None
    detail: str = ""
    """Of a failure: one line for people."""
    finish_reason: str = ""
    """`stop`, `length`, …"""
    seconds: float = 0.0


class Target(Protocol):
    """Anything that answers messages; safe to ask from several threads."""

    name: str
    """For reports: the folder or the address."""

    def ask(self, messages: Messages, *, seed: int | None = None) -> Answer:
        """The answer to a conversation whose last message is the user's."""

    def close(self) -> None:
        """Free what it holds; nothing may be asked after."""


def open_target(place: Path | str, config: AskConfig | None = None, *, model: str = "", api_key: str = "") -> Target:
    """The target at `place`: a URL that begins with http:// or https://, else a model folder, loaded into this process.

    `model`: the name to ask a server for; the first of its list if not given. `api_key`: sent to that server alone.
    Raises HerdError where `place` is neither; a server that does not answer is a failure of its answers.
    """
    config = config or AskConfig()
    if "://" in str(place):
        return ServerTarget(str(place), config, model=model, api_key=api_key)
    from herd.engine.load import load  # torch takes seconds to import

    return FolderTarget(load(place), config, name=str(place))


def ask_all(
    target: Target, conversations: Iterable[Messages], *, seed: int | None = None, at_once: int = 8
) -> Iterator[Answer]:
    """Answers in the order of the conversations, `at_once` of which are asked at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda messages: target.ask(messages, seed=seed), conversations)


class FolderTarget:
    """A model in this process, with an engine of its own."""

    def __init__(self, model: "Model", config: AskConfig, *, name: str) -> None:
        from herd.engine.pipeline import AnswerPipeline

        self.name, self._config = name, config
        self._engine = model.engine()
        self._pipeline = AnswerPipeline(model, self._engine)

    def ask(self, messages: Messages, *, seed: int | None = None) -> Answer:
        from herd.engine.conversation import Conversation
        from herd.engine.sampler import SamplingParams

        begin, asked = time.monotonic(), self._config
        text, reason = "", ""
        try:
            params = SamplingParams(max_tokens=asked.max_tokens, temperature=asked.temperature, seed=seed)
            request = self._pipeline.fit(self._pipeline.request(Conversation(messages), params))
            with closing(self._pipeline.iterate(request)) as parts:  # type: ignore[type-var]
                for part in parts:
                    if part.finish_reason in ("error", "fault", "abort"):
                        return _failed("error status", part.text or "the engine gave up", begin)
                    text, reason = text + part.text, part.finish_reason or ""
                    if not reason and time.monotonic() - begin > asked.timeout_s:
                        return replace(_failed("hung", f"no whole answer in {asked.timeout_s:g} s", begin), text=text)
        except Exception as error:  # whatever a model does, the run goes on and the answer says so
            return _failed("error status", f"{type(error).__name__}: {error}", begin)
        return _answer(text, reason, begin)

    def close(self) -> None:
        self._engine.close()


class ServerTarget:
    """A server with `/v1/chat/completions`."""

    def __init__(self, url: str, config: AskConfig, *, model: str, api_key: str) -> None:
        self.name, self._config = url, config
        self._model, self._api_key = model, api_key
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise HerdError(f"{url} is no address of a server: {error}") from None
        if parts.scheme not in ("http", "https") or not self._host or parts.username or parts.query or parts.fragment:
            raise HerdError(f"{url} is no address of a server: give http://HOST:PORT or http://HOST:PORT/v1")
        self._https = parts.scheme == "https"
        self._path = parts.path.rstrip("/") or "/v1"

    def ask(self, messages: Messages, *, seed: int | None = None) -> Answer:
        begin = time.monotonic()
        if not self._model:
            found = self._first_model(begin)
            if isinstance(found, Answer):
                return found
            self._model = found
        body = {
            "model": self._model,
            "messages": [dict(message) for message in messages],
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
        } | ({} if seed is None else {"seed": seed})
        reply = self._request("POST", "/chat/completions", body, begin)
        if isinstance(reply, Answer):
            return reply
        try:
            choice = reply["choices"][0]
            message, reason = choice["message"], choice.get("finish_reason") or "stop"
            text = message.get("content") or message.get("refusal") or ""
            if not isinstance(text, str) or not isinstance(reason, str):
                raise TypeError("content and finish_reason are texts")
        except (LookupError, TypeError, AttributeError):
            return _failed("garbage", f"no chat completion: {json.dumps(reply)}", begin)
        return _answer(text, reason, begin)

    def close(self) -> None:
        """Nothing is held between two questions."""

    def _first_model(self, begin: float) -> str | Answer:
        reply = self._request("GET", "/models", None, begin)
        if isinstance(reply, Answer):
            return replace(reply, detail=f"asked for its models: {reply.detail}")
        try:
            name = reply["data"][0]["id"]
        except (LookupError, TypeError):
            name = None
        if not isinstance(name, str) or not name:
            return _failed("garbage", f"no list of models, name one: {json.dumps(reply)}", begin)
        return name

    def _request(self, method: str, path: str, body: object, begin: float) -> Any:
        """The JSON of a reply, or the Answer that says why there is none."""
        left_s = begin + self._config.timeout_s - time.monotonic()
        if left_s <= 0:
            return _failed("hung", f"no whole answer in {self._config.timeout_s:g} s", begin)
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=left_s)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        late = threading.Event()
        # A socket's timeout is for one read: a server that sends a byte a second would never be late.
        alarm = threading.Timer(left_s, _shut, (connection, late))
        alarm.daemon = True
        connected = False
        try:
            connection.connect()
            connected = True
            alarm.start()
            connection.request(method, self._path + path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            data = response.read(MAX_BODY_BYTES + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                return _failed("hung", f"no whole answer in {self._config.timeout_s:g} s", begin)
            if isinstance(error, http.client.BadStatusLine | http.client.LineTooLong | http.client.UnknownProtocol):
                dropped = isinstance(error, http.client.RemoteDisconnected)
                return _failed("dropped connection" if dropped else "garbage", f"no HTTP: {error}", begin)
            return _failed("dropped connection" if connected else "refused connection", str(error), begin)
        finally:
            alarm.cancel()
            connection.close()
        if late.is_set():
            return _failed("hung", f"no whole answer in {self._config.timeout_s:g} s", begin)
        if response.status >= 300:
            return _failed("error status", f"HTTP {response.status} {data[:1000].decode(errors='replace')}", begin)
        if response.length and len(data) <= MAX_BODY_BYTES:
            return _failed("dropped connection", f"{response.length:,} bytes of the answer are missing", begin)
        if len(data) > MAX_BODY_BYTES:
            return _failed("garbage", f"more than {MAX_BODY_BYTES:,} bytes", begin)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return _failed("garbage", f"no JSON: {data[:1000].decode(errors='replace')}", begin)


def _shut(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    late.set()
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def _answer(text: str, reason: str, begin: float) -> Answer:
    """An answer that is whole, unless a filter ended it or there is nothing in it."""
    failure: Failure | None = None
    if reason not in ("stop", "length", "tool_calls"):
        failure = "blocked"
    elif not text.strip():
        failure = "empty"
    detail = {"blocked": f"ended by {reason}", "empty": "an answer without text", None: ""}[failure]
    seconds = time.monotonic() - begin
    return Answer(text=text, failure=failure, detail=detail, finish_reason=reason, seconds=seconds)


def _failed(failure: Failure, detail: str, begin: float) -> Answer:
    return Answer(failure=failure, detail=" ".join(detail.split())[:MAX_DETAIL], seconds=time.monotonic() - begin)
