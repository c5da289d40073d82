"""Online RL on several ranks: what they publish does not depend on how they share the model."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rl_world import Wrong, make_world, settings

from herd.bench.ranks import on_ranks
from herd.config import ParallelConfig, RlConfig
from herd.config.rl_loss import PolicyLossConfig
from herd.engine.load import load
from herd.engine.weights import weights_digest
from herd.errors import HerdError, Stopped
from herd.model.parallel import ALONE, Parallel
from herd.model.parallel.mesh import Mesh
from herd.rl.journal import Journal
from herd.rl.weights import Publish
from herd.stages.rl import JOURNAL, refuse_readers, rl

TWO = ParallelConfig(expert=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("rl"))


def run(config: RlConfig, world: tuple[Path, Path], out: Path) -> str:
    """Why the run ended, if before its end; on the ranks that there are."""
    if dist.is_initialized():  # what torchrun says
        os.environ.update(RANK=str(dist.get_rank()), WORLD_SIZE=str(dist.get_world_size()))
    try:
        rl(config, *world, out)
    except (HerdError, Stopped) as error:
        return str(error)
    return ""


def run_until_version_2(config: RlConfig, world: tuple[Path, Path], out: Path) -> str:
    after_step = Publish.after_step

    def and_stop(self, step, optimizer, *, updated):
        found = after_step(self, step, optimizer, updated=updated)
        if step == 1 and self.parallel.first:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    Publish.after_step = and_stop
    try:
        return run(config, world, out)
    finally:
        Publish.after_step = after_step


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_ranks_that_share_the_experts_publish_the_weights_of_one_rank(world, tmp_path, one_thread):
    """Of the same weights two ranks publish the digest of one: the first ones, and those of the saved folder."""
    config = settings(dtype="bfloat16", num_steps=2, replay="on")
    [ends] = on_ranks((2, run, (replace(config, parallel=TWO), world, tmp_path / "two")))
    assert ends == ["", ""]
    assert run(config, world, tmp_path / "one") == ""
    one, two = (Journal(tmp_path / name / JOURNAL, read_only=True) for name in ("one", "two"))
    assert (one.published[0], one.picked[0]) == (two.published[0], two.picked[0])
    assert len(set(two.published.values())) == 3
    saved = load(tmp_path / "two", dtype=torch.bfloat16).transformer.state_dict()
    assert two.published[2] == weights_digest(saved)
    alone, shared = metrics(tmp_path / "one")[0], metrics(tmp_path / "two")[0]
    assert alone["reward"] == shared["reward"]
    assert alone["grad_norm"] == pytest.approx(shared["grad_norm"], rel=0.02)


@pytest.mark.slow
def test_one_rank_goes_on_from_two_and_an_error_of_the_first_ends_all(world, tmp_path, one_thread):
    """The journal has the digests that two ranks published; it would refuse others of the same checkpoint."""
    lagging, out = settings(mode="pinned", lag=1, num_steps=4), tmp_path / "stopped"
    stopped, broken = on_ranks(
        (2, run_until_version_2, (replace(lagging, parallel=TWO), world, out)),
        (2, run, (replace(settings(Wrong), parallel=TWO), world, tmp_path / "broken")),
    )
    assert all("stopped as asked, the 2 steps of 4" in one for one in stopped)
    assert all("3 groups in a row are invalid" in one for one in broken)
    before = Journal(out.with_name("stopped.partial") / JOURNAL, read_only=True).published
    assert run(lagging, world, out) == ""
    after = Journal(out / JOURNAL, read_only=True).published
    assert list(after) == [0, 1, 2, 3, 4]
    assert {version: after[version] for version in before} == before


@pytest.mark.parametrize(
    "changes", [{"exact": True}, {"teacher": "t"}, {"loss": PolicyLossConfig(reference_kl=0.1)}], ids=str
)
def test_whole_models_do_not_read_on_several_ranks(changes):
    refuse_readers(settings(**changes), ALONE)
    two = Parallel(Mesh(ParallelConfig()))
    two.mesh.sizes["expert"] = 2
    with pytest.raises(HerdError, match="on one rank"):
        refuse_readers(settings(**changes), two)
