"""Rows of a bench as a table or as JSON: {"rows": [{case, unit, ours, peer, peer_name, ratio}, …], "machine": …}."""

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t for a 95 % interval of a mean, by the number of seeds."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure of ours beside a peer's, taken in the same run."""

    case: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    more_is_better: bool = False
    """As of rates; not in the JSON, whose ratio accounts for it."""

    @property
    def ratio(self) -> float:
        """Above 1 where ours is better."""
        less, more = (self.peer, self.ours) if self.more_is_better else (self.ours, self.peer)
        return more / max(less, 1e-12)

    def as_dict(self) -> dict[str, object]:
        """As JSON has it."""
        names = ("case", "unit", "ours", "peer", "peer_name", "ratio")
        return {name: getattr(self, name) for name in names}


def interval(values: Sequence[float]) -> str:
    """The mean and its 95 % interval by Student's t."""
    reach = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):+.3f} ± {reach:.3f}"


def machine() -> dict[str, object]:
    """Where the rows were measured."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    card = {"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    cores, python = os.cpu_count(), platform.python_version()
    return {"cpu": cpu, "cores": cores, **card, "python": python, "torch": version("torch")}


def show(rows: list[Row], *, as_json: bool) -> None:
    """Print the rows."""
    where = machine()
    if as_json:
        print(json.dumps({"rows": [row.as_dict() for row in rows], "machine": where}, indent=1))
        return
    cells = [("case", "unit", "ours", "peer", "ratio", "peer's name")]
    cells += [(r.case, r.unit, f"{r.ours:.3g}", f"{r.peer:.3g}", f"{r.ratio:.3g}", r.peer_name) for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        texts = (
            f"{cell:>{width}}" if 2 <= i <= 4 else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(texts).rstrip())
    print(", ".join(f"{name} {value}" for name, value in where.items()))
