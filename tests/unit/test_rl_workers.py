"""Workers that are lost and started again, without any process: what is drawn again, by which weights, and what goes
over the border as bytes."""

import asyncio
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rl_groups import group
from rl_world import Jittered, make_world, settings

from herd.errors import HerdError
from herd.rl.draw import EngineFailed, Failure, InvalidGroup
from herd.rl.journal import Admitted, Journal
from herd.rl.messages import Load, Reply, draw_for, group_bytes, group_of, places_of, reply_of, unpack, write
from herd.rl.team import MOST_LOST, Team
from herd.rl.worker import Here, WorkerLost
from herd.stages import rl as stage
from herd.stages.rl import JOURNAL, rl

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.bool]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("rl"))


class Losing(Here):
    """Loses each third group the first time, some before the engine is done with it and some long after."""

    versions: list[int]

    def __init__(self, drawer):
        super().__init__(drawer)
        self.lost: set[int] = set()

    async def draw(self, admitted, drawn):
        drawn_group = await super().draw(admitted, drawn)
        if admitted.ordinal % 3 or admitted.ordinal in self.lost:
            return drawn_group
        self.lost.add(admitted.ordinal)
        drawn()
        await asyncio.sleep(random.Random().uniform(0, 0.3))
        raise WorkerLost

    def load(self, version, tensors):
        self.versions.append(version)
        return super().load(version, tensors)


def run(config, world, out: Path) -> Journal:
    rl(config, *world, out)
    return Journal(out / JOURNAL, read_only=True)


def lose(monkeypatch) -> list[int]:
    """Have runs lose groups; the versions that are loaded."""
    Losing.versions = []
    monkeypatch.setattr(stage, "open_worker", lambda opening, _, prompts: Losing(opening.open(prompts.environments)))
    return Losing.versions


def test_lost_groups_are_drawn_again_by_the_weights_that_they_are_due(world, tmp_path, monkeypatch, one_thread):
    config = settings(Jittered, num_steps=5, mode="pinned", lag=2)
    calm = run(config, world, tmp_path / "calm")
    versions = lose(monkeypatch)
    lossy = run(config, world, tmp_path / "lossy")
    assert any(np.diff(versions) < 0), "some were lost after newer weights had come"
    assert (lossy.published, lossy.picked) == (calm.published, calm.picked)
    for step, ordinals in lossy.picked.items():
        found = {int(v) for one in ordinals for r in lossy.group(one).rollouts for v in r.versions()}
        assert found == {max(0, step - 2)}


def test_in_flight_lost_groups_are_drawn_again_by_what_is_there(world, tmp_path, monkeypatch, one_thread):
    lose(monkeypatch)
    journal = run(settings(Jittered, num_steps=4, mode="inflight", lag=1), world, tmp_path / "out")
    trained = {one for ordinals in journal.picked.values() for one in ordinals}
    assert len(journal.published) == 5 and any(one % 3 == 0 for one in trained)


class Fake:
    """A member that answers as it is set to."""

    def __init__(self, ground):
        self.ground, self.held, self.killed = ground, None, False
        self.drawing: list[asyncio.Future] = []

    async def draw(self, admitted, drawn):
        if self.killed:
            raise WorkerLost
        self.drawing.append(asyncio.get_running_loop().create_future())
        return await self.drawing[-1]

    def load(self, version, weights):
        return lambda: self._load(weights)

    def _load(self, weights):
        if self.ground.deaths and not self.killed:
            self.ground.deaths -= 1
            self.kill()
        if self.killed:
            raise WorkerLost
        self.held = weights
        return weights if self not in self.ground.wrong else "other"

    def kill(self):
        self.killed = True

    def die(self):
        self.kill()
        for one in self.drawing:
            if not one.done():
                one.set_exception(WorkerLost())


class FakeGround:
    def __init__(self):
        self.started: list[Fake] = []
        self.wrong: set[Fake] = set()
        self.deaths = 0
        """How many members die when they are given weights."""

    def start(self):
        self.started.append(Fake(self))
        return self.started[-1]

    def put(self, tensors):
        return tensors["digest"]


def admission(ordinal: int) -> Admitted:
    return Admitted(ordinal=ordinal, wave=0, environment="e", cell="c", index=0, seed=0, version=0)


async def begin(team: Team, *ordinals: int) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(team.draw(admission(one), lambda: None)) for one in ordinals]
    await asyncio.sleep(0)
    return tasks


def test_groups_go_where_the_fewest_are_and_weights_to_all():
    async def check():
        ground = FakeGround()
        team = Team(ground, 3)
        assert team.load(0, {"digest": "a"}) == "a"
        assert [one.held for one in ground.started] == ["a"] * 3
        tasks = await begin(team, *range(7))
        assert [len(one.drawing) for one in ground.started] == [3, 2, 2]
        ground.started[2].drawing[0].set_result("g")
        assert await tasks[2] == "g"
        await begin(team, 7)
        assert [len(one.drawing) for one in ground.started] == [3, 2, 3]

    asyncio.run(check())


def test_one_that_ends_loses_its_groups_alone_and_the_next_has_the_newest_weights():
    async def check():
        ground = FakeGround()
        team = Team(ground, 2)
        team.load(0, {"digest": "a"})
        tasks = await begin(team, 0, 1)
        ground.started[0].die()
        with pytest.raises(WorkerLost):
            await tasks[0]
        assert not tasks[1].done()
        again = asyncio.create_task(team.draw(admission(0), lambda: None))
        while len(ground.started) < 3 or not ground.started[2].drawing:
            await asyncio.sleep(0.001)
        assert ground.started[2].held == "a"
        ground.started[2].drawing[0].set_result("g")
        assert await again == "g"

    asyncio.run(check())


@pytest.mark.parametrize("deaths", [1, 2, 3])
def test_those_that_end_while_they_load_are_started_again(deaths):
    ground = FakeGround()
    team = Team(ground, 2)
    ground.deaths = deaths
    assert team.load(5, {"digest": "b"}) == "b"
    assert [one.held for one in ground.started if not one.killed] == ["b", "b"]
    assert len(ground.started) == 2 + deaths


def test_one_that_ended_while_nothing_was_asked_of_it_is_started_again():
    ground = FakeGround()
    team = Team(ground, 2)
    team.load(0, {"digest": "a"})
    ground.started[1].die()
    assert team.load(1, {"digest": "b"}) == "b"
    assert [one.held for one in ground.started if not one.killed] == ["b", "b"]
    assert len(ground.started) == 3


def test_workers_that_end_again_and_again_end_the_run():
    ground = FakeGround()
    team = Team(ground, 1)
    ground.deaths = MOST_LOST + 1
    with pytest.raises(HerdError, match=r"ended 4 times in a row before a group was drawn"):
        team.load(0, {"digest": "a"})
    assert all(one.killed for one in ground.started)


def test_workers_that_hold_different_weights_end_the_run():
    ground = FakeGround()
    team = Team(ground, 2)
    ground.wrong.add(ground.started[1])
    with pytest.raises(HerdError, match="hold different weights for version 3"):
        team.load(3, {"digest": "a"})


def test_none_is_started_once_the_team_is_closed():
    async def check():
        ground = FakeGround()
        team = Team(ground, 1)
        tasks = await begin(team, 0)
        team.close()
        ground.started[0].die()
        with pytest.raises(WorkerLost):
            await tasks[0]
        with pytest.raises(HerdError, match="closed"):
            await team.draw(admission(1), lambda: None)
        assert len(ground.started) == 1

    asyncio.run(check())


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6))
def test_weights_are_the_same_behind_the_border(kinds):
    tensors = {
        f"t{number}": torch.randint(0, 2, shape).to(dtype).transpose(0, -1) if shape else torch.ones((), dtype=dtype)
        for number, (dtype, shape) in enumerate(kinds)
    }
    room_B = torch.full((places_of(tensors)[1],), 7, dtype=torch.uint8)
    order = msgspec.msgpack.encode(Load(3, write(tensors, room_B)))
    found = unpack(msgspec.msgpack.decode(order, type=Load).places, room_B)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_groups_are_the_same_behind_the_border():
    sent = group(3, (0.0, 0.1 + 0.2), num_tokens=9)
    assert group_bytes(group_of(group_bytes(sent))) == group_bytes(sent)
    assert group_of(group_bytes(sent)).rollouts[1].reward == 0.1 + 0.2


@pytest.mark.parametrize("error", [Failure("gone"), InvalidGroup("nan"), HerdError("no such file"), KeyError("bug")])
def test_errors_are_raised_on_the_other_side_as_what_they_are(error):
    class Raising:
        async def draw(self, admitted, drawn):
            drawn()
            raise error

    said: list[Reply] = []
    asyncio.run(draw_for(Raising(), admission(4), said.append))
    assert (said[0].kind, said[0].to) == ("drawn", 4)
    raised = said[1].raised()
    assert type(raised) is (RuntimeError if isinstance(error, KeyError) else type(error))
    assert (str(error) if not isinstance(error, KeyError) else "KeyError: 'bug'") in str(raised)
    assert said[1] == msgspec.msgpack.decode(msgspec.msgpack.encode(said[1]), type=Reply)


def test_an_engine_that_fails_each_time_ends_its_worker():
    class Failing:
        async def draw(self, admitted, drawn):
            raise EngineFailed("the engine failed 3 times")

    with pytest.raises(EngineFailed):
        asyncio.run(draw_for(Failing(), admission(0), lambda reply: None))
    assert reply_of(EngineFailed("x"), 0).kind == "failure"
