"""`herd bench serve --soak-minutes N`: one server under streaming clients for so long, and what becomes of its memory.

A random model of shape S in bf16, as in `herd bench serve`. Twice as many clients as slots, so that half of them wait.
Printed are the rate, the times to the first piece and between two pieces, and the server's resident memory, read every
second. No peer runs beside it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

from herd.bench.serve import herd_process, over_http, percentile
from herd.bench.table import machine
from herd.errors import HerdError

CLIENTS = 64
EVERY_S = 1.0
ALLOWED_GROWTH = 0.02
"""Of the resident memory, from the second quarter's mean to the last one's."""


def soak(*, minutes: float, as_json: bool) -> None:
    """Run and print. Raises HerdError where memory grows or a page is in use at the end."""
    if minutes <= 0:
        raise HerdError(f"soak_minutes={minutes} must be positive")
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as folder:
        subprocess.run([sys.executable, "-m", "herd.bench.engine_files", "S", "bf16", folder], check=True)
        with herd_process(Path(folder) / "bf16") as (running, url):
            memory, ended = list[float](), threading.Event()

            def watch() -> None:
                while not ended.wait(EVERY_S):
                    memory.append(resident_mb(running.pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                seen = over_http(url, CLIENTS, 60 * minutes)
            finally:
                ended.set()
                watcher.join()
            left = used_bytes(url)
    first, last = mean_between(memory, 0.25, 0.5), mean_between(memory, 0.75, 1.0)
    figures = {
        "minutes": minutes,
        "clients": CLIENTS,
        "pieces_per_s": seen.pieces_per_s,
        "answers": len(seen.first_s),
        "first_piece_p50_ms": 1e3 * percentile(seen.first_s, 0.5),
        "first_piece_p99_ms": 1e3 * percentile(seen.first_s, 0.99),
        "gap_p50_ms": 1e3 * percentile(seen.gaps_s, 0.5),
        "gap_p99_ms": 1e3 * percentile(seen.gaps_s, 0.99),
        "second_quarter_mb": first,
        "last_quarter_mb": last,
        "most_mb": max(memory),
        "left_bytes": left,
    }
    if as_json:
        print(json.dumps({**figures, "memory_mb": memory, "machine": machine()}))
    else:
        print("\n".join(f"{name:20} {value:,.1f}" for name, value in figures.items()))
    if left or last > first * (1 + ALLOWED_GROWTH):
        raise HerdError("the server does not end as it was: see the figures above")


def mean_between(values: list[float], begin: float, end: float) -> float:
    """Of the values between two shares of the time."""
    at = int(begin * len(values))
    return statistics.fmean(values[at : max(at + 1, int(end * len(values)))])


def resident_mb(pid: int) -> float:
    """Of another process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024


def used_bytes(url: str) -> float:
    """Of the cache, in use by requests."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("herd_engine_used_bytes{"))
