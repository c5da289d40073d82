"""A checkpoint that some ranks wrote is resumed from by another number of them, tensor by tensor and row by row."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from herd.config import CheckpointConfig
from herd.core.lineage import Stage
from herd.train.checkpoint import Checkpoints, State, candidates

PLACES = {"rows": Shard(0), "columns": Shard(1), "everywhere": Replicate(), "uneven": Shard(0)}
"""How two ranks hold each tensor."""


def whole(offset: float) -> dict[str, Tensor]:
    shapes = {"rows": (4, 6), "columns": (3, 8), "everywhere": (5,), "uneven": (7, 2), "plain": (2, 2)}
    tensors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        dtype = torch.bfloat16 if name == "columns" else torch.float32
        size = torch.Size(shape).numel()
        tensors[name] = (torch.arange(size, dtype=dtype).reshape(shape) + offset + 100 * index).to(dtype)
    return tensors


class Part:
    """Nested tensors, each held as the number of ranks wants it."""

    def __init__(self, offset: float, *, split: bool) -> None:
        tensors = whole(offset)
        if split:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            tensors |= {name: distribute_tensor(tensors[name], mesh, [place]) for name, place in PLACES.items()}
        self.state: State = {"first": {name: tensors.pop(name) for name in ("rows", "columns")}, "rest": tensors}

    def state_dict(self) -> State:
        return self.state

    def load_state_dict(self, state: State) -> None:
        self.state = state

    def joined(self) -> dict[str, Tensor]:
        tensors = self.state["first"] | self.state["rest"]
        return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def checkpoints(folder: Path, part: Part) -> Checkpoints:
    return Checkpoints(Stage("test", folder / "out", config={}, parents={}), CheckpointConfig(), {"part": part})


def check(part: Part, offset: float) -> None:
    for name, tensor in part.joined().items():
        assert torch.equal(tensor, whole(offset)[name]), name


def rank(index: int, folder: Path) -> None:
    """Resume as one of two ranks from what one wrote; then save another state, asked by the second rank alone."""
    dist.init_process_group("gloo", rank=index, world_size=2, init_method=f"file://{folder}/meet")
    part = Part(-1.0, split=True)
    with checkpoints(folder, part) as ours:
        assert ours.resume() == 3
        check(part, 1.0)
        for group in part.state.values():
            for tensor in group.values():
                tensor += 4
        assert not ours.save_if_due(7)
        assert ours.save_if_due(8, leave=index == 1)
        assert candidates(ours.root)[0].name == "step-8"
    dist.destroy_process_group()


def test_one_rank_resumes_from_two_and_two_from_one(tmp_path: Path) -> None:
    with checkpoints(tmp_path, Part(1.0, split=False)) as ours:
        ours.save(3)
    mp.spawn(rank, args=(tmp_path,), nprocs=2)
    part = Part(-1.0, split=False)
    with checkpoints(tmp_path, part) as ours:
        assert ours.resume() == 8
    check(part, 5.0)
    written = {path.name for path in (ours.root / "step-8").iterdir()}
    assert written == {".metadata", "commit.json", "__0_0.distcp", "__1_0.distcp"}
