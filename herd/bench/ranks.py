"""Functions on several gloo ranks, each a process of its own: for benches and tests."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Case = tuple[int, Callable[..., Any], tuple[Any, ...]]
"""How many ranks, what each calls (a module's own function), and with what."""


def on_ranks(*cases: Case) -> list[list[Any]]:
    """What each case gives on each of its ranks. The cases run one after the other in the same processes: to start one
    takes longer than many a case."""
    count = max(ranks for ranks, _, _ in cases)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder, cases), nprocs=count, join=True)
        return [
            [torch.load(Path(folder) / f"{number}-{rank}.pt", weights_only=False) for rank in range(case[0])]
            for number, case in enumerate(cases)
        ]


def _rank(rank: int, folder: str, cases: Sequence[Case]) -> None:
    torch.set_num_threads(1)
    for number, (count, function, arguments) in enumerate(cases):
        if rank >= count:
            continue
        store = dist.FileStore(str(Path(folder) / f"{number}"), count)
        dist.init_process_group("gloo", rank=rank, world_size=count, store=store)
        torch.save(function(*arguments), Path(folder) / f"{number}-{rank}.pt")
        dist.destroy_process_group()
