"""`herd bench scaling`: the same training on 1, 2, 3 and 4 gloo ranks, for each axis of the mesh and products of them.

Each case trains a small Scout-like model (fp32) for 50 steps on random documents with the very loop of pre-training.
Its rows: how far its losses are from one rank's beside the target of 1e-6; its tokens a second beside one rank's, all
ranks sharing this machine's cores; and the bytes that a rank sends in a step beside those of all gradients in fp32.
What FSDP sends is computed from its shards, all else counted.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from herd.bench.oracles import random_model
from herd.bench.parity import SCOUT_LIKE
from herd.bench.ranks import on_ranks
from herd.bench.shapes import pack_documents
from herd.bench.table import Row, show
from herd.config import MoEConfig, OptimizerConfig, ParallelConfig, PretrainConfig
from herd.core.batch import Batch
from herd.core.lineage import Stage
from herd.core.tracker import read_metrics
from herd.errors import HerdError
from herd.model.parallel import Parallel, local
from herd.model.parallel.mesh import Mesh
from herd.stages.language import train_language

BOUND = 1e-6
"""Losses are about 5.6: one unit in the last place of an fp32 number there is 4.8e-7."""
SHAPE = replace(
    SCOUT_LIKE, num_layers=4, num_kv_heads=4, moe=MoEConfig(num_experts=8, ffn_dim=64, every=2), vision=None
)
LENGTHS = (60, 9, 1, 33, 16, 41)
"""Tokens of each document: uneven, over many chunk edges."""
MESHES = (
    {"replicate": 2},
    {"shard": 2},
    {"expert": 2},
    {"context": 2},
    {"tensor": 2},
    {"expert": 3},
    {"shard": 4},
    {"expert": 4},
    {"context": 4},
    {"tensor": 4},
    {"replicate": 2, "expert": 2},
    {"shard": 2, "context": 2},
    {"replicate": 2, "tensor": 2},
)


class RandomBatches:
    """The same lengths in each step; batch s is a function of s."""

    unit = "tokens"

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        tokens_N = torch.randint(SHAPE.vocab_size, (sum(LENGTHS),), generator=generator)
        learnt_N = torch.rand(len(tokens_N), generator=generator) < 0.8
        targets_N = (tokens_N * 7 + 1) % SHAPE.vocab_size  # something to learn
        batch = pack_documents(tokens_N, LENGTHS)
        return replace(batch, targets_N=targets_N, weights_N=learnt_N.float(), total_weight=None)


def curve(mesh: ParallelConfig, optimizer: OptimizerConfig, num_steps: int, folder: Path) -> dict[str, list[float]]:
    """Train; the losses, the tokens a second of each step, and the bytes that this rank sent."""
    parallel = Parallel(Mesh(mesh))
    model = random_model(SHAPE, seed=0, scale=0.1).requires_grad_(True)
    parallel.apply(model)
    config = PretrainConfig(optimizer=optimizer, parallel=mesh, balance_coefficient=0.01, bias_update_rate=0.0)
    stage = Stage("scaling", folder, config=config, parents={})
    train_language(model, RandomBatches(num_steps), config, stage, parallel)
    lines = read_metrics(stage.work / "metrics.jsonl")
    sent = parallel.mesh.sent_bytes / num_steps + fsdp_bytes(parallel, dict(model.named_parameters()))
    return {
        "loss": [line["loss"] for line in lines],
        "tokens_per_s": [line["tokens_per_s"] for line in lines],
        "bytes": [sent],
    }


def fsdp_bytes(parallel: Parallel, parameters: dict[str, Tensor]) -> float:
    """What FSDP sends of this rank's shards in a step: parameters for the forward and again for the backward (those
    outside of layers stay), gradients in fp32."""
    shard, replicate = parallel.mesh.sizes["shard"], parallel.mesh.sizes["replicate"]
    if shard == 1:
        return 0.0
    total = 0.0
    for name, parameter in parameters.items():
        own = local(parameter)
        total += own.nbytes * (shard - 1) * (2 if name.startswith("layers.") else 1)
        total += own.numel() * 4 * (shard - 1 + 2 * (replicate - 1) / replicate)
    return total


def mesh_name(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def scaling(*, steps: int, as_json: bool) -> None:
    """Measure and print; a loss that is further from one rank's than BOUND is an error."""
    # A token between two experts goes to the other one for a rounding's sake, which is a step in the loss: so tokens
    # are few, and no biases are folded. Muon's iteration raises roundings: it is measured, but not held to the bound.
    adamw = OptimizerConfig(matrix="adamw", adamw_lr=0.002, embedding_lr=0.002, unembedding_lr=0.002, other_lr=0.002)
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        runs = [({}, adamw), *((mesh, adamw) for mesh in MESHES), ({}, OptimizerConfig())]
        runs += [(mesh, OptimizerConfig()) for mesh in MESHES[:5]]
        meshes = [ParallelConfig(**mesh) for mesh, _ in runs]
        found = on_ranks(
            *(
                (mesh.world, curve, (mesh, optimizer, steps, Path(folder) / str(number)))
                for number, (mesh, (_, optimizer)) in enumerate(zip(meshes, runs, strict=True))
            )
        )
    gradient_bytes = 4.0 * sum(p.numel() for p in random_model(SHAPE, seed=0).parameters())
    alone = {optimizer.matrix: ranks[0] for (mesh, optimizer), ranks in zip(runs, found, strict=True) if not mesh}
    for (mesh, optimizer), ranks in zip(runs, found, strict=True):
        if not mesh:
            continue
        case, one = mesh_name(mesh), alone[optimizer.matrix]
        apart = max(abs(a - b) for a, b in zip(ranks[0]["loss"], one["loss"], strict=True))
        rows.append(
            Row(
                case=f"{case}, {optimizer.matrix}",
                unit=f"max |Δloss| over {steps} steps",
                ours=apart,
                peer=BOUND,
                peer_name="the target",
            )
        )
        if optimizer.matrix == "adamw":
            worst = max(worst, apart)
            rows.append(
                Row(
                    case=case,
                    unit="tokens/s",
                    ours=median(ranks[0]["tokens_per_s"]),
                    peer=median(one["tokens_per_s"]),
                    peer_name="one rank",
                    more_is_better=True,
                )
            )
            rows.append(
                Row(
                    case=case,
                    unit="bytes a step and rank",
                    ours=max(rank["bytes"][0] for rank in ranks),
                    peer=gradient_bytes,
                    peer_name="all gradients once",
                )
            )
    show(rows, as_json=as_json)
    if worst > BOUND:
        raise HerdError(f"a loss differs by {worst:.1e} from one rank's, over {BOUND:.0e}")
