"""`herd bench resume`: what saving costs a training, beside torch.distributed.checkpoint's own save that is waited for.

54.7 M parameters in bf16 with their fp32 masters and moments are trained on batches of 8 x 512 random tokens. Stretches
of a few steps without a save, with ours and with the peer's at their begin alternate; a save costs the seconds by which
the median stretch is longer. Both write to one disk. That nothing is lost is shown by tests/unit/test_train_kills.py.
"""

import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed.checkpoint as dcp

from herd.bench.shapes import SHAPES, pack_documents, random_tokens
from herd.bench.table import Row, show
from herd.config import CheckpointConfig, OptimizerConfig
from herd.core.lineage import Stage
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.checkpoint import Checkpoints
from herd.train.losses import language_loss
from herd.train.optimizer import Optimizer

STEPS = 5
"""Steps of a stretch: longer than a save takes to be written."""
ROUNDS = 3


def resume(*, as_json: bool) -> None:
    """Measure and print the rows."""
    with tempfile.TemporaryDirectory(prefix="herd-bench-") as folder:
        show(measure(Path(folder)), as_json=as_json)


def measure(folder: Path) -> list[Row]:
    """The rows; what is saved goes into `folder`."""
    shape, lengths = SHAPES["S"], [512] * 8
    model = Transformer(shape).to(torch.bfloat16)
    initialise(model, torch.Generator().manual_seed(0))
    optimizer, loss_fn = Optimizer(model.train(), OptimizerConfig(), 1000), language_loss(0.01)
    every_s = CheckpointConfig().every_s
    made = 0

    def stretch(save: Callable[[int], None], num_steps: int) -> tuple[float, float]:
        """Seconds of a stretch, and of these until its save lets the training go on."""
        nonlocal made
        began = time.monotonic()
        save(made + 1)
        paused = time.monotonic() - began
        for _ in range(num_steps):
            batch = pack_documents(random_tokens(shape.vocab_size, sum(lengths), seed=made), lengths)
            loss_fn(model, batch)[0].backward()
            optimizer.step(made, float(optimizer.grad_norm()))
            optimizer.clear()
            made += 1
        checkpoints.wait()  # nothing in most cases; else the stretch was too short for the save
        return time.monotonic() - began, paused

    def save_as_peer(_: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that there is one process, as intended
            dcp.save({"optimizer": optimizer.state_dict()}, checkpoint_id=folder / "peer", no_dist=True)

    stage = Stage("bench", folder / "ours", config={}, parents={})
    taken: dict[str, list[tuple[float, float]]] = {"none": [], "ours": [], "peer": []}
    with Checkpoints(stage, CheckpointConfig(), {"optimizer": optimizer}) as checkpoints:
        ways = {"none": lambda _: None, "ours": checkpoints.save, "peer": save_as_peer}
        for counted in [False] + ROUNDS * [True]:  # at first memory is taken
            for name, save in ways.items():
                taken[name] += [stretch(save, STEPS if counted else 1)][: int(counted)]
                shutil.rmtree(folder / "peer", ignore_errors=True)
    whole = {name: median(seconds for seconds, _ in pairs) for name, pairs in taken.items()}
    paused = {name: 1000 * median(seconds for _, seconds in pairs) for name, pairs in taken.items()}
    lost = {name: 100 * (whole[name] - whole["none"]) / every_s for name in whole}
    peer_name = f"dcp.save of torch {torch.__version__}, waited for"
    cases = {
        ("training pauses at a save", "ms"): paused,
        (f"throughput lost at a save every {every_s:.0f} s", "%"): lost,
    }
    return [
        Row(case=case, unit=unit, ours=values["ours"], peer=values["peer"], peer_name=peer_name)
        for (case, unit), values in cases.items()
    ]
