"""Streaming clients for `herd bench serve`, and the same requests to an engine without a server.

A client asks, reads its answer's events, and asks anew until the time is over. Every prompt is another one, so that
none is known from before. The clients of a round are one process: `python -m herd.bench.serve_load URL CLIENTS SECONDS`
prints what they saw as JSON. It reads raw bytes, as it shares the cores with the server that it measures.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

ANSWER_TOKENS = 128
WORDS = ("the", "cat", "sat", "on", "mat", "red", "sun", "rose", "over", "hills", "we", "sang")


@dataclass(kw_only=True)
class Seen:
    """What the clients of one round saw."""

    pieces_per_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    """From a request to its first piece."""
    gaps_s: list[float] = field(default_factory=list)
    """Between two pieces of an answer."""
    total_s: float = 0.0
    """Until the last answer that was under way had ended."""


def question(client: int, number: int) -> str:
    """About fifty tokens of the bench's tokenizer, different from the first on."""
    start = client * 7919 + number * 104_729
    return f"{start} " + " ".join(WORDS[(start >> i) % len(WORDS)] for i in range(11))


async def load(ask: Callable[[str], AsyncIterator[object]], *, clients: int, seconds: float) -> Seen:
    """Clients that `ask` one thing after another. An item of `ask` is a piece of its answer."""
    begin = time.perf_counter()
    seen, end = Seen(), begin + seconds
    num_pieces = 0

    async def client(index: int) -> None:
        nonlocal num_pieces
        number = 0
        while time.perf_counter() < end:
            number += 1
            times = [time.perf_counter()]
            async for _ in ask(question(index, number)):
                times.append(time.perf_counter())
            num_pieces += sum(moment < end for moment in times[1:])
            seen.first_s += [b - a for a, b in pairwise(times[:2])]
            seen.gaps_s += [b - a for a, b in pairwise(times[1:])]

    await asyncio.gather(*map(client, range(clients)))
    seen.pieces_per_s, seen.total_s = num_pieces / seconds, time.perf_counter() - begin
    return seen


async def over_http(url: str, *, clients: int, seconds: float) -> Seen:
    """The clients of a server with OpenAI's API."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    [model] = json.loads(await _get(url, "/v1/models"))["data"]

    async def ask(text: str) -> AsyncIterator[object]:
        body = json.dumps(
            {
                "model": model["id"],
                "messages": [{"role": "user", "content": text}],
                "max_tokens": ANSWER_TOKENS,
                "temperature": 0,
                "stream": True,
            }
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError(f"{url}: {status!r} {await reader.read()!r}")
            async for line in reader:
                # A piece has text; the first event has only the role, the last one the reason.
                if line.startswith(b"data: {") and b'"content":' in line and not is_empty(line):
                    yield line
        finally:
            writer.close()

    return await load(ask, clients=clients, seconds=seconds)


def is_empty(event: bytes) -> bool:
    after = event[event.index(b'"content":') + 10 :].lstrip()
    return after.startswith((b'""', b"null"))


async def _get(url: str, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n\r\n")[2]


def engine_alone(pipe: Connection, folder: Path, slots: int) -> None:
    """A child process with an engine: answers (clients, seconds) with what clients in its own event loop see."""
    from herd.engine.load import load as open_folder
    from herd.engine.sampler import SamplingParams

    model = open_folder(folder)
    engine = model.engine(max_num_seqs=slots)
    params = SamplingParams(max_tokens=ANSWER_TOKENS)

    async def ask(text: str) -> AsyncIterator[object]:
        prompt = model.render([{"role": "user", "content": text}])
        async with aclosing(engine.generate(prompt, params)) as pieces:
            async for piece in pieces:
                if piece.text:
                    yield piece

    pipe.send(None)
    while (asked := pipe.recv()) is not None:
        clients, seconds = asked
        pipe.send(asyncio.run(load(ask, clients=clients, seconds=seconds)))
    engine.close()


def llama_cpp(pipe: Connection, path: Path, slots: int, context: int) -> None:
    """A child process with the server in xllamacpp's wheel: sends its address, and ends when it receives anything."""
    import os
    from importlib import import_module

    xllamacpp = import_module("xllamacpp")  # without types
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.port = slots * context, slots, 0
    params.warmup, params.fit_params, params.kv_unified, params.use_jinja = True, False, False, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    params.verbosity = -1
    server = xllamacpp.Server(params)
    pipe.send(server.listening_address)
    pipe.recv()


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(over_http(sys.argv[1], clients=int(sys.argv[2]), seconds=float(sys.argv[3]))))))
