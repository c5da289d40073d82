"""Runs of `herd rl` whose groups are drawn in child processes or by actors of Ray: the same to the bit as in one
process, also where these are killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rl_world import Dying, Hanging, Jittered, make_world, settings

from herd.config import EngineConfig
from herd.config.engine import DEFAULT_MAX_MODEL_LEN
from herd.engine.load import load
from herd.errors import HerdError
from herd.plan.counts import cache_bytes, usual_cache_bytes
from herd.rl.journal import Journal
from herd.rl.process import Processes
from herd.rl.team import Team
from herd.rl.worker import Opening, WorkerLost
from herd.stages.rl import JOURNAL, rl


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("rl"))


@pytest.fixture
def deaths(tmp_path, monkeypatch):
    """Where workers that end leave a flag each: one, if not set otherwise."""
    flags = tmp_path / "flags"
    flags.mkdir()
    monkeypatch.setenv("DYING_TIMES", "1")
    monkeypatch.setenv("DYING_FLAGS", str(flags))
    return flags


@pytest.fixture
def ray(monkeypatch):
    """A cluster of two CPUs whose workers find the environments of these tests."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}")
    yield lambda: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.shutdown()


def run(config, world, out: Path) -> Journal:
    rl(config, *world, out)
    return Journal(out / JOURNAL, read_only=True)


def test_a_child_that_is_killed_changes_nothing(world, tmp_path, deaths, one_thread):
    check_killed_child(world, tmp_path, deaths, num_steps=4, num_deaths=1)


@pytest.mark.slow
def test_a_child_that_is_killed_again_and_again_changes_nothing(world, tmp_path, deaths, monkeypatch, one_thread):
    monkeypatch.setenv("DYING_TIMES", "2")
    check_killed_child(world, tmp_path, deaths, num_steps=6, num_deaths=2)


def check_killed_child(world, tmp_path, deaths, *, num_steps, num_deaths):
    calm = run(settings(num_steps=num_steps, mode="pinned", lag=2), world, tmp_path / "calm")
    config = settings(Dying, num_steps=num_steps, mode="pinned", lag=2, on="process")
    killed = run(config, world, tmp_path / "killed")
    assert len(list(deaths.iterdir())) == num_deaths
    assert (killed.published, killed.picked) == (calm.published, calm.picked)
    assert len(set(calm.published.values())) == num_steps + 1


def test_the_run_leaves_while_an_environment_of_a_child_hangs(world, tmp_path, monkeypatch, one_thread):
    flag = tmp_path / "hangs"
    monkeypatch.setenv("HANGING_FLAG", str(flag))
    asked: list[float] = []

    def stop() -> None:
        while not flag.exists():
            time.sleep(0.05)
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(BaseException, match="stopped as asked"):
        rl(settings(Hanging, on="process"), *world, tmp_path / "out")
    assert time.monotonic() - asked[0] < 10


def opening(world, **changes) -> Opening:
    model, data = world
    config = settings(**changes)
    return Opening(config=config, model=model, data=data, folder=Path.cwd(), dtype=torch.float32, num_threads=1)


def test_what_a_child_cannot_open_is_said_in_its_words(world, one_thread):
    tensors = load(world[0], dtype=torch.float32).transformer.state_dict()
    team = Team(Processes(opening(world, environment="rl_world:Absent"), tensors), 1)
    with pytest.raises(HerdError, match=r"rl_world.*Absent"):
        team.load(0, tensors)
    team.close()


def test_the_engine_has_room_for_eight_long_answers_whatever_its_slots_or_for_what_is_given(world):
    shape = load(world[0], dtype=torch.float32).config
    usual = usual_cache_bytes(shape, EngineConfig(max_num_seqs=64), number_bytes=4)
    assert usual == 8 * cache_bytes(shape, min(shape.max_positions, DEFAULT_MAX_MODEL_LEN), number_bytes=4)
    for given, most in ((0, usual), (usual // 3, usual // 3)):
        drawer = opening(world, groups=16, group_size=4, kv_cache_memory_bytes=given).open({})
        assert most // 3 < drawer.engine.cache_bytes <= most
        drawer.engine.close()


PARENT = """
import sys, time, torch
from rl_world import settings
from pathlib import Path
from herd.engine.load import load
from herd.rl.process import Processes
from herd.rl.worker import Opening
if __name__ == "__main__":
    model, data = map(Path, sys.argv[1:])
    tensors = load(model, dtype=torch.float32).transformer.state_dict()
    options = {"folder": Path(), "dtype": torch.float32, "num_threads": 1}
    child = Processes(Opening(config=settings(), model=model, data=data, **options), tensors)
    member = child.start()
    print(member.load(0, child.put(tensors))(), member._process.pid, flush=True)
    time.sleep(1000)
"""


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_child_hears_no_signals_and_ends_with_its_parent(world, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    path = f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, str(tmp_path / "parent.py"), *map(str, world)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as parent:
        child = int(parent.stdout.readline().split()[1])
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGINT)
        time.sleep(0.5)
        assert is_there(child)
        parent.kill()
    limit = time.monotonic() + 20
    while is_there(child) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not is_there(child)


@pytest.mark.slow
def test_a_child_that_always_ends_ends_the_run(world, tmp_path, deaths, monkeypatch, one_thread):
    monkeypatch.setenv("DYING_TIMES", "100")
    config = settings(Dying, groups=1, group_size=16, num_steps=3, on="process")  # it ends within each group
    with pytest.raises(HerdError, match=r"rollout workers ended 4 times in a row"):
        rl(config, *world, tmp_path / "out")
    assert len(list(deaths.iterdir())) == 4


@pytest.mark.slow
def test_a_quantised_engine_in_a_child_draws_the_same(world, tmp_path, one_thread):
    config = settings(quantize="int8", dtype="bfloat16", mode="pinned", num_steps=4)
    here = run(config, world, tmp_path / "here").published
    assert run(replace(config, on="process"), world, tmp_path / "process").published == here


@pytest.mark.slow
def test_lag_0_by_a_child_process_or_two_actors_of_ray_is_sync_over_50_steps(world, tmp_path, ray, one_thread):
    synchronous = run(settings(num_steps=50), world, tmp_path / "sync").published
    ray()
    for on, workers in (("process", 1), ("ray", 2)):
        config = settings(Jittered, num_steps=50, mode="pinned", lag=0, on=on, workers=workers)
        assert run(config, world, tmp_path / on).published == synchronous
    assert len(set(synchronous.values())) == 51


@pytest.mark.slow
def test_actors_of_ray_that_are_killed_change_nothing(world, tmp_path, ray, deaths, monkeypatch, one_thread):
    monkeypatch.setenv("DYING_TIMES", "5")  # before the cluster, whose workers are to know it
    calm = run(settings(num_steps=10, mode="pinned", lag=2), world, tmp_path / "calm")
    ray()
    config = settings(Dying, num_steps=10, mode="pinned", lag=2, on="ray", workers=2)
    killed = run(config, world, tmp_path / "killed")
    assert len(list(deaths.iterdir())) == 5
    assert (killed.published, killed.picked) == (calm.published, calm.picked)


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_cpus_are_refused(world, tmp_path, ray, one_thread):
    ray()
    with pytest.raises(HerdError, match=r"workers=3 are more than the 2 CPUs"):
        rl(settings(on="ray", workers=3), *world, tmp_path / "out")


def test_one_that_was_killed_says_so(world, one_thread):
    child = Processes(opening(world), {}).start()
    child.kill()
    with pytest.raises(WorkerLost):
        child.load(0, ())()
