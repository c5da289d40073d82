"""`herd bench channels`: a storm of webhooks at two processes that are killed, and what became of each message.

Deliveries of one channel are duplicated (also in the same moment to both processes), shuffled and batched: texts,
pictures, buttons and places, with edits, deletions, reactions, receipts, echoes, changed numbers, handovers, standby,
unsupported and unknown events and forgeries between them; each is sent again until it is acknowledged. The processes
share a store; one delivers, the other takes over when it is killed. The answer to a message repeats it, so the double
of the Graph API sees what was answered, and how often.
"""

import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from herd.bench.channels_weather import PICTURE, STRANGER, Weather
from herd.bench.table import Row, show
from herd.errors import HerdError
from herd.serve.channels.config import TRAITS, Channel
from herd.serve.channels.double import GraphDouble, local_accounts, signed
from herd.serve.channels.events import SIGNATURE_HEADER
from herd.serve.channels.simulate import local_server
from herd.serve.channels.store import Store

WORKERS = 8
MIN_GAP_S = 1.35
"""Between two kills, on average."""
ACKNOWLEDGE_MS = 250.0
"""What Meta asks for."""


@dataclass
class Fate:
    """What became of the messages of a storm."""

    messages: int = 0
    answered: int = 0
    """Exactly once."""
    unknown: int = 0
    """Not seen by the double, and marked as perhaps not sent."""
    deleted: int = 0
    """By their sender before they were answered."""
    lost: int = 0
    doubled: int = 0
    """Answered more than once, or a part of an answer sent twice."""
    to_ourselves: int = 0
    forged: int = 0
    """Accepted with a false signature."""
    deliveries: int = 0
    kills: int = 0
    acknowledge_ms: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.acknowledge_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


class Process:
    """A server that can be killed and comes back on its port."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._arguments = [*arguments[:3], str(self.port), *arguments[3:]]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "herd.bench.channels_server", *self._arguments]
        self._running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self._running.send_signal(signal.SIGKILL)
        self._running.wait()


def storm(
    channel: Channel, *, kind: str = "herd", messages: int, kills: int, people: int = 40, seed: int = 0,
    per_s: float = 0.0, settle_s: float = 120.0,
) -> Fate:  # fmt: skip
    """Send a storm at `kind` (herd, or the controls naive and pywa) and see what became of its messages. `per_s`: most
    deliveries a second; `settle_s`: how long it may take afterwards."""
    fate = Fate()
    with tempfile.TemporaryDirectory(prefix="herd-storm-") as folder, ExitStack() as stack:
        double = GraphDouble(local_accounts("http://127.0.0.1/v25.0"), "")
        graph = f"{stack.enter_context(local_server(double.app))}/v25.0"
        double.accounts = local_accounts(graph)
        double.media[PICTURE] = ("image/png", b"a picture, which the echo does not open")
        store = Path(folder) / "storm.sqlite"
        processes = [Process(kind, channel, graph, str(store)) for _ in range(2)]
        for one in processes:
            stack.callback(one.kill)
        double.webhooks = processes[0].url
        weather = Weather(channel, double, messages=messages, people=people, seed=seed)
        client = stack.enter_context(httpx2.Client(trust_env=False, verify=False, timeout=10))
        stopping = threading.Event()
        posts = _Posts(client, channel, double, fate, stopping)
        for one in processes:
            posts.wait_for(one.url)
        # Over the whole storm, at random, but so that a process has time to start on a busy machine.
        gap_s = max(MIN_GAP_S, len(weather.deliveries) / per_s / kills) if per_s and kills else MIN_GAP_S
        killer = threading.Thread(target=_kill, args=(processes, kills, gap_s, seed, fate, stopping))
        killer.start()
        # A control that fails at a delivery fails at it for ever.
        _send(weather, posts, [one.url for one in processes], per_s, tries=200 if kind == "herd" else 4)
        deadline = time.monotonic() + settle_s
        while fate.kills < kills and time.monotonic() < deadline:  # the rest of them while answers are sent
            time.sleep(0.1)
        stopping.set()
        killer.join()
        while kind == "herd" and _is_busy(store) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(0.5)
        # The controls are asked about messages of text alone: they are written for no others.
        judged = [f"m{number};" for number in range(messages)]
        judged = [one for one in judged if kind == "herd" or one in weather.plain]
        fate.messages = len(judged)
        _judge(fate, judged, weather, double, store if kind == "herd" else None)
    return fate


class _Posts:
    """Sends deliveries until they are acknowledged, as Meta does."""

    def __init__(
        self, client: httpx2.Client, channel: Channel, double: GraphDouble, fate: Fate, stopping: threading.Event
    ) -> None:
        self.client, self.channel, self.double, self.fate, self.stopping = client, channel, double, fate, stopping
        self.lock = threading.Lock()

    def wait_for(self, url: str) -> None:
        for _ in range(600):
            with suppress(httpx2.HTTPError):
                self.client.get(f"{url}/nothing")
                return
            time.sleep(0.1)

    def send(self, payload: Any, urls: Sequence[str], tries: int) -> None:
        """Send to the first of `urls`, if it does not answer to the next."""
        body, signature = signed(payload, self.double.accounts[self.channel].app_secret)
        for number in range(tries):
            url, begin = urls[number % len(urls)], time.perf_counter()
            with suppress(httpx2.HTTPError):
                status = self._post(url, body, signature)
                if status == 200:
                    with self.lock:
                        self.fate.acknowledge_ms.append(1e3 * (time.perf_counter() - begin))
                        self.fate.deliveries += 1
                    return
            time.sleep(min(0.05 * 2**number, 1.0))

    def forge(self, payload: Any, url: str) -> None:
        body, _ = signed(payload, "")
        with suppress(httpx2.HTTPError):
            if self._post(url, body.replace(b"m", b"f"), signed(payload, "a guess")[1]) == 200:
                with self.lock:
                    self.fate.forged += 1

    def _post(self, url: str, body: bytes, signature: str) -> int:
        headers = {SIGNATURE_HEADER: signature, "Content-Type": "application/json"}
        return self.client.post(f"{url}/webhooks/{self.channel}", content=body, headers=headers).status_code


def _send(weather: Weather, posts: _Posts, urls: list[str], per_s: float, *, tries: int) -> None:
    rng = weather.random
    with ThreadPoolExecutor(WORKERS) as pool:
        for payload in weather.deliveries:
            order = urls if rng.random() < 0.5 else urls[::-1]
            pool.submit(posts.send, payload, order, tries)
            if rng.random() < 0.3:  # in the same moment, to the other
                pool.submit(posts.send, payload, order[::-1], tries)
            if rng.random() < 0.1:
                pool.submit(posts.send, rng.choice(weather.deliveries), order, tries)
            if rng.random() < 0.02:
                pool.submit(posts.forge, payload, urls[0])
            if per_s:
                time.sleep(1 / per_s)


def _kill(processes: list[Process], kills: int, gap_s: float, seed: int, fate: Fate, stopping: threading.Event) -> None:
    rng = random.Random(seed)
    while fate.kills < kills and not stopping.wait(gap_s * rng.uniform(0.15, 1.85)):
        one = rng.choice(processes)
        one.kill()
        one.start()
        fate.kills += 1


def _is_busy(path: Path) -> bool:
    store = Store(path)
    try:
        sql = "SELECT 1 FROM messages WHERE state = 'new' UNION ALL SELECT 1 FROM turns WHERE state = 'open'"
        return store.db.execute(sql).fetchone() is not None
    finally:
        store.close()


def _judge(fate: Fate, judged: list[str], weather: Weather, double: GraphDouble, path: Path | None) -> None:
    """Find each message among what the double was sent, and, where it is not, in the store."""
    seen: Counter[str] = Counter()
    for one in double.texts:
        seen.update(set(re.findall(r"m\d+;", one.text)))
        fate.to_ourselves += one.who in (STRANGER, double.accounts[weather.channel].id)
    twice = [text for (_, text), num in Counter((one.who, one.text) for one in double.texts).items() if num > 1]
    states = _states(path) if path else {}
    for token in judged:
        state = states.get(token, "")
        if seen[token] == 1:
            fate.answered += 1
        elif seen[token] > 1:
            fate.doubled += 1
            fate.examples.append(f"{token} was answered {seen[token]} times ({state})")
        elif token in weather.deleted and state in ("", "revoked"):
            fate.deleted += 1
        elif state == "unknown":
            fate.unknown += 1
        else:
            fate.lost += 1
            fate.examples.append(f"{token} was not answered ({state or 'not in the store'})")
    single = [text for text in twice if not re.search(r"m\d+;", text)]
    fate.doubled += len(single)
    fate.examples += [f"sent twice: {text[:40]}" for text in single]


def _states(path: Path) -> dict[str, str]:
    """Of each message why it has no answer, or `unknown` if a part of its answer may not have been sent."""
    store, found = Store(path), dict[str, str]()
    sql = (
        "SELECT mid, state, reason, EXISTS (SELECT 1 FROM parts WHERE parts.turn = messages.turn "
        "AND state IN ('unknown', 'sending')) AS unsure FROM messages WHERE role = 'user'"
    )
    try:
        for row in store.db.execute(sql):
            number = re.search(r"\.(\d+)$", row["mid"])
            if number:
                found[f"m{number[1]};"] = "unknown" if row["unsure"] else row["reason"] or row["state"]
    finally:
        store.close()
    return found


def bench_channels(
    *, channels: Sequence[Channel], messages: int, kills: int, per_s: float, controls: bool, seed: int, as_json: bool
) -> None:
    """Storm each channel, and the controls, and print what became of the messages. Raises HerdError if one was lost or
    answered twice by ours."""
    for one in channels:
        if one not in TRAITS:
            raise HerdError(f"channels={one!r} must be of {', '.join(TRAITS)}")
    if messages < 1 or kills < 0:
        raise HerdError(f"messages={messages} must be positive, and kills={kills} not negative")
    rows, wrong = list[Row](), list[str]()
    for channel in channels:
        ours = storm(channel, messages=messages, kills=kills, seed=seed, per_s=per_s, settle_s=600)
        _note(channel, "herd", ours)
        wrong += [f"{channel}: {one}" for one in ours.examples]
        if ours.to_ourselves or ours.forged:
            wrong.append(f"{channel}: {ours.to_ourselves} to ourselves, {ours.forged} forged")
        for kind in ("naive", "pywa") if controls else ():
            if kind == "pywa" and channel != "whatsapp":
                continue
            control = storm(
                channel, kind=kind, messages=min(messages, 500), kills=min(kills, 5), seed=seed, per_s=per_s
            )
            _note(channel, kind, control)
            for name in ("lost", "doubled"):
                share, other = (100 * getattr(one, name) / one.messages for one in (ours, control))
                rows.append(Row(case=f"{channel} {name}", unit="% of messages", ours=share, peer=other, peer_name=kind))
        p99 = ours.percentile(0.99)
        rows.append(
            Row(case=f"{channel} acknowledged p99", unit="ms", ours=p99, peer=ACKNOWLEDGE_MS, peer_name="Meta's wish")
        )
    show(rows, as_json=as_json)
    if wrong:
        raise HerdError(f"{len(wrong)} messages were not treated right, the first: {wrong[0]}")


def _note(channel: str, kind: str, fate: Fate) -> None:
    print(
        f"{channel}, {kind}: {fate.messages} messages, {fate.deliveries} acknowledged deliveries, {fate.kills} kills: "
        f"{fate.answered} answered once, {fate.unknown} not known whether sent, {fate.deleted} deleted by the sender, "
        f"{fate.lost} lost, {fate.doubled} answered twice, {fate.to_ourselves} to ourselves, {fate.forged} forged; "
        f"acknowledged in {fate.percentile(0.5):.0f} ms (p99 {fate.percentile(0.99):.0f})",
        file=sys.stderr,
    )
