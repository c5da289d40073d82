"""`herd bench serve`: what 1, 8 and 32 streaming clients get from our server, in one run with its peers.

The peers are our engine alone (the same model and requests, without HTTP) and llama.cpp's server on the same weights:
of its wheel, or of a build at hand. A random model of shape S in bf16 answers 128 tokens to prompts of about fifty,
each another one. Rounds alternate; pieces a second are their median, times the percentiles of all rounds together. The
clients are a process of their own, on the same cores.
"""

import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from herd.bench.engine import installed_version
from herd.bench.engines import wheel_build
from herd.bench.serve_load import Seen, engine_alone, llama_cpp
from herd.bench.table import Row, show
from herd.errors import HerdError

SLOTS = 32
CONTEXT = 512
OURS, ALONE, PEER = "Herd's server", "Herd's engine alone", "llama.cpp's server"
Measured = Callable[[int, float], Seen]
"""From a number of clients and seconds to what they saw."""


def serve(*, clients: Sequence[int], rounds: int, seconds: float, llama_cpp_folder: Path | None, as_json: bool) -> None:
    """Measure and print. `llama_cpp_folder`: of its built programs, instead of the wheel; without either ours alone."""
    if min(clients, default=0) < 1 or rounds < 1 or seconds <= 0:
        raise HerdError(f"clients={list(clients)}, rounds={rounds} and seconds={seconds} must be positive")
    program = llama_cpp_folder / "llama-server" if llama_cpp_folder else None
    if program is not None and not program.is_file():
        raise HerdError(f"{llama_cpp_folder} has no llama-server: build it with -DLLAMA_BUILD_SERVER=ON")
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as folder, ExitStack() as stack:
        home = Path(folder)
        subprocess.run([sys.executable, "-m", "herd.bench.engine_files", "S", "bf16", folder], check=True)
        contenders: dict[str, Measured] = {
            OURS: partial(over_http, stack.enter_context(herd_server(home / "bf16"))),
            ALONE: stack.enter_context(alone(home / "bf16")),
        }
        if program is not None:
            contenders[PEER] = partial(over_http, stack.enter_context(built_server(program, home / "BF16.gguf")))
        elif installed_version("xllamacpp"):
            served = stack.enter_context(wheel_server(home / "BF16.gguf"))
            contenders[f"{PEER} ({wheel_build()})"] = partial(over_http, served)
        else:
            print("llama.cpp is not here: pip install 'herd-lm[oracle]', or --llama-cpp FOLDER", file=sys.stderr)
        rows: list[Row] = []
        for count in clients:
            seen: dict[str, list[Seen]] = {name: [] for name in contenders}
            for _ in range(rounds):
                for name, load_server in contenders.items():
                    seen[name].append(load_server(count, seconds))
            rows += rows_of(count, seen)
    show(rows, as_json=as_json)


def rows_of(clients: int, seen: dict[str, list[Seen]]) -> Iterator[Row]:
    """Our server beside each peer: pieces a second, first piece and gap at the median and the 99th percentile."""

    def figures(name: str) -> dict[str, float]:
        first = [one for part in seen[name] for one in part.first_s]
        gaps = [one for part in seen[name] for one in part.gaps_s]
        return {
            "pieces": statistics.median(part.pieces_per_s for part in seen[name]),
            "first piece p50": 1e3 * percentile(first, 0.5),
            "first piece p99": 1e3 * percentile(first, 0.99),
            "gap p50": 1e3 * percentile(gaps, 0.5),
            "gap p99": 1e3 * percentile(gaps, 0.99),
        }

    ours = figures(OURS)
    for peer in seen:
        if peer == OURS:
            continue
        for name, value in figures(peer).items():
            rate = name == "pieces"
            yield Row(
                case=f"{clients} clients {name}",
                unit="pieces/s" if rate else "ms",
                ours=ours[name],
                peer=value,
                peer_name=peer,
                more_is_better=rate,
            )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them are; infinite where nothing came."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


def over_http(url: str, clients: int, seconds: float) -> Seen:
    """What a process of clients sees of the server at `url`."""
    command = [sys.executable, "-m", "herd.bench.serve_load", url, str(clients), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HerdError(f"the clients of {url} failed: {done.stderr.strip().splitlines()[-1][:300]}")
    return Seen(**json.loads(done.stdout))


@contextmanager
def process(command: Sequence[object]) -> Iterator["subprocess.Popen[str]"]:
    words = [str(word) for word in command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            yield running
        finally:
            running.terminate()


@contextmanager
def herd_server(folder: Path, *options: str) -> Iterator[str]:
    with herd_process(folder, *options) as (_, url):
        yield url


@contextmanager
def herd_process(folder: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`herd serve`, and its address."""
    command = [sys.executable, "-m", "herd", "serve", folder, "--port", 0, "--max-num-seqs", SLOTS, *options]
    with process(command) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        if not (match := re.search(r"http://[0-9.:]+", line)):
            raise HerdError(f"herd serve did not start: {line!r}")
        yield running, match[0]


@contextmanager
def built_server(program: Path, path: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "-m", path, "--port", port, "-np", SLOTS, "-c", SLOTS * CONTEXT, "--jinja"]
    with process(command):
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            time.sleep(0.2)
        yield url


@contextmanager
def child(target: Callable[..., None], *arguments: object) -> Iterator[tuple[Any, Any]]:
    """A process of its own: the pipe to it, and the first object that it sends."""
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    running = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    running.start()
    theirs.close()
    try:
        yield pipe, pipe.recv()
        pipe.send(None)
        running.join(10)
    except (EOFError, BrokenPipeError):
        raise HerdError(f"the process of {target.__name__} died") from None
    finally:
        running.kill()


@contextmanager
def wheel_server(path: Path) -> Iterator[str]:
    with child(llama_cpp, path, SLOTS, CONTEXT) as (_, url):
        yield str(url)


@contextmanager
def alone(folder: Path) -> Iterator[Measured]:
    with child(engine_alone, folder, SLOTS) as (pipe, _):

        def load_server(clients: int, seconds: float) -> Seen:
            pipe.send((clients, seconds))
            seen = pipe.recv()
            assert isinstance(seen, Seen)
            return seen

        yield load_server
