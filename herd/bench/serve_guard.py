"""`herd bench serve --guard FOLDER`: what a guard costs, tokens a second of one server with it and one without.

Both serve the same random model of shape S, in alternating rounds. The guard's threshold is set out of reach, so that
answers run to their ends and its reading is what is measured: of every question, and of every 200 characters of an
answer with all before. Tokens are those that the server counts, as a guard sends an answer in fewer pieces.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from herd.bench.serve import herd_server, over_http, percentile
from herd.bench.serve_load import Seen
from herd.bench.table import Row, show
from herd.errors import HerdError

WITH, WITHOUT = "with the guard", "Herd's server without"


def measure(guard: Path, *, clients: Sequence[int], rounds: int, seconds: float, as_json: bool) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as folder, ExitStack() as stack:
        home = Path(folder)
        subprocess.run([sys.executable, "-m", "herd.bench.engine_files", "S", "bf16", folder], check=True)
        never = open_wide(guard, home / "guard")
        urls = {
            WITH: stack.enter_context(herd_server(home / "bf16", "--guard", str(never))),
            WITHOUT: stack.enter_context(herd_server(home / "bf16")),
        }
        rows: list[Row] = []
        for count in clients:
            seen: dict[str, list[tuple[float, Seen]]] = {name: [] for name in urls}
            for _ in range(rounds):
                for name, url in urls.items():
                    before = counted_tokens(url)
                    load = over_http(url, count, seconds)
                    # Answers that are under way at the end are read to theirs: the tokens of a little more time.
                    seen[name].append(((counted_tokens(url) - before) / load.total_s, load))
            rows += rows_of(count, seen)
    show(rows, as_json=as_json)


def open_wide(guard: Path, copy: Path) -> Path:
    """A copy of the guard's folder that blocks nothing. Raises HerdError where the folder is no guard's."""
    lineage = guard / "herd.json"
    facts = json.loads(lineage.read_text(encoding="utf-8")) if lineage.exists() else {}
    if "guard" not in facts:
        raise HerdError(f"{guard} is no guard of herd guard train")
    shutil.copytree(guard, copy)
    facts["guard"]["threshold"] = 2.0
    (copy / "herd.json").write_text(json.dumps(facts), encoding="utf-8")
    return copy


def counted_tokens(url: str) -> float:
    """Of answers, since the server's start."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("herd_completion_tokens_total")))


def rows_of(clients: int, seen: dict[str, list[tuple[float, Seen]]]) -> list[Row]:
    """Tokens a second, and the first piece at the median: a guard holds it back for a chunk."""

    def figures(name: str) -> tuple[float, float]:
        first = [one for _, load in seen[name] for one in load.first_s]
        return statistics.median(rate for rate, _ in seen[name]), 1e3 * percentile(first, 0.5)

    (rate, first), (peer_rate, peer_first) = figures(WITH), figures(WITHOUT)
    cases = (("tokens", "tokens/s", rate, peer_rate), ("first piece p50", "ms", first, peer_first))
    return [
        Row(
            case=f"{clients} clients {what}",
            unit=unit,
            ours=ours,
            peer=peer,
            peer_name=WITHOUT,
            more_is_better=unit == "tokens/s",
        )
        for what, unit, ours, peer in cases
    ]
