"""Rollouts of a small model by an engine of any settings, for tests that compare them to the bit."""

import asyncio
import functools
import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from rl_world import Jittered
from torch import Tensor

from herd.bench.select_world import new_tokenizer
from herd.config import MoEConfig, preset
from herd.data.media.image import ImageProcessor
from herd.engine.engine import Engine
from herd.engine.load import Model
from herd.model.transformer import Transformer
from herd.plan.counts import page_bytes
from herd.rl.advantages import ADVANTAGES
from herd.rl.batches import pack_groups
from herd.rl.draw import Drawer
from herd.rl.environment import Reaction
from herd.rl.journal import Admitted
from herd.rl.loss import RolloutBatch
from herd.rl.prompts import Prompts
from herd.rl.record import Group, Rollout
from herd.train.sharing import share_prompts
from herd.train.teacher import Teacher

CHUNK = 16


class Repeating:
    """Asks for repetition, in a prompt as long as its cell says, and lets the model speak up to three times."""

    cells = ("1", "3", "12", "40")
    tools = ()

    def prompt(self, cell: str, index: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": "copy 1 2 3 " * int(cell) + str(index)}]

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        if sum(one["role"] == "assistant" for one in messages) < seed % 3:
            return Reaction(reward=None, messages=({"role": "user", "content": "sort 3 2"},))
        return Reaction(reward=float(len(answer["content"]) % 2))


class Chatting(Jittered):
    """Has the model of every third rollout speak twice; waits each time."""

    def respond(self, messages: Any, answer: Mapping[str, Any], *, seed: int = 0) -> Reaction:
        reaction = super().respond(messages, answer, seed=seed)
        if seed % 3 or any(one["role"] == "assistant" for one in messages):
            return reaction
        return Reaction(reward=None, messages=({"role": "user", "content": "go on"},))


tokenizer_once = functools.cache(new_tokenizer)


def small_model(seed: int = 0) -> Model:
    """Random weights with likely and unlikely tokens: local and global layers, mixtures, chunks of 16 tokens."""
    tokenizer = tokenizer_once()
    config = replace(
        preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids),
        dim=64, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=32, dense_ffn_dim=64, vision=None,
        moe=MoEConfig(num_experts=4, ffn_dim=64), nope_every=2, chunk_size=CHUNK, temperature_floor=CHUNK,
    )  # fmt: skip
    model = Model(
        config=config, transformer=Transformer(config), tokenizer=tokenizer, processor=ImageProcessor(config.vision)
    )
    model.transformer.load_state_dict(random_weights(model, seed))
    return model


def random_weights(model: Model, seed: int) -> dict[str, Tensor]:
    """Weights that begin with the same unembedding for all seeds: what is likely moves little from one to another."""
    weights, generator = {}, torch.Generator().manual_seed(seed)
    for name, tensor in model.transformer.state_dict().items():
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.1 * torch.randn(tensor.shape, generator=generator)
        elif name in ("embedding.weight", "unembedding.weight"):
            weights[name] = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))) / 4
        else:
            width = tensor.shape[-2] if name.endswith("EDF") else tensor.shape[-1]
            weights[name] = torch.randn(tensor.shape, generator=generator) * width**-0.5
    weights["unembedding.weight"][list(model.config.special.stop)] *= 1.15
    return weights


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the engine is set up, and what it is asked."""

    slots: int
    prefill: int
    mixed_prefill: int
    drafts: int
    drafts_itself: bool
    """Drafts by the model itself, all of which hold; else by n-grams."""
    room: float
    """Pages, as a multiple of those of the longest rollout."""
    group_size: int
    max_tokens: int
    cells: tuple[str, ...]
    """Of each group."""
    seed: int


def plans(num_groups: int = 5, max_tokens: int = 70) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        slots=st.integers(1, 64),
        prefill=st.integers(1, 300),
        mixed_prefill=st.integers(1, 100),
        drafts=st.integers(0, 4),
        drafts_itself=st.booleans(),
        room=st.sampled_from([1.0, 1.5, 3.0, 100.0]),
        group_size=st.integers(2, 8),
        max_tokens=st.integers(1, max_tokens),
        cells=st.lists(st.sampled_from(Repeating.cells), min_size=1, max_size=num_groups).map(tuple),
        seed=st.integers(0, 10**6),
    )


def open_engine(model: Model, plan: Plan) -> Engine:
    longest = max(len(model.render(Repeating().prompt(cell, 10**4)).token_ids) for cell in plan.cells) + plan.max_tokens
    global_bytes, local_bytes = page_bytes(model.config, number_bytes=4)
    needed = -(-longest // model.config.page_tokens) * global_bytes
    return model.engine(
        max_num_seqs=plan.slots,
        max_prefill_tokens=plan.prefill,
        max_mixed_prefill_tokens=plan.mixed_prefill,
        num_speculative_tokens=plan.drafts,
        draft_model=model if plan.drafts and plan.drafts_itself else None,
        kv_cache_memory_bytes=int(2 * plan.room * needed) + local_bytes * CHUNK // model.config.page_tokens,
    )


def admissions(plan: Plan, version: int = 0) -> list[Admitted]:
    return [
        Admitted(
            ordinal=i, wave=0, environment="repeating", cell=cell, index=i % 2, seed=plan.seed + 1000 * i,
            version=version,
        )
        for i, cell in enumerate(plan.cells)
    ]  # fmt: skip


def drawer_of(engine: Engine, plan: Plan) -> Drawer:
    prompts = Prompts(engine.model, {"repeating": Repeating()})
    return Drawer(
        engine, prompts, group_size=plan.group_size, max_tokens=plan.max_tokens, max_turns=3, timeout_s=60, attempts=1
    )


def draw_groups(engine: Engine, plan: Plan) -> list[Group]:
    """All groups at once, in the order of their admission."""
    drawer = drawer_of(engine, plan)

    async def draw() -> list[Group]:
        return await asyncio.gather(*(drawer.draw(one, lambda: None) for one in admissions(plan)))

    return asyncio.run(draw())


def draw(model: Model, plan: Plan, counted: Counter[str]) -> list[Group]:
    """By an engine of its own; what happened is added to `counted`."""
    with closing(open_engine(model, plan)) as engine:
        groups = draw_groups(engine, plan)
        stats = engine.stats()
        counted.update({name: stats[name] for name in ("preempted", "drafted", "accepted")})
    counted["tokens"] += sum(one.num_drawn for one in groups)
    counted["turns"] += sum(not r.drawn.all() for one in groups for r in one.rollouts)
    return groups


def packed(groups: Sequence[Group]) -> RolloutBatch:
    return pack_groups(groups, ADVANTAGES["mean_centred"], no_pictures, None)


def no_pictures(group: Group) -> Any:
    raise AssertionError


def read_again(model: Model, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Recorded log-probabilities of all drawn tokens, and those of the batch by the trainer's reader."""
    batch = packed(groups)
    drawn_N, sharing = batch.weights_N != 0, share_prompts(batch.prompts_N, batch.starts_S, torch.device("cpu"))
    reader = Teacher(model.transformer, as_drawn=True)
    return batch.logprobs_N[drawn_N], reader.logprobs(batch, sharing)[drawn_N]


def bits(rollout: Rollout) -> tuple[list[int], bytes]:
    """Its tokens, and their log-probabilities to the bit."""
    return rollout.ids.tolist(), rollout.logprobs.tobytes()


def update_after_steps(engine: Engine, weights: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Have new weights come behind the engine's steps of these numbers; their versions are the numbers plus 1."""
    run, count = engine._runner.run, itertools.count()

    def run_and_update(step: Any) -> Any:
        results, number = run(step), next(count)
        if number in weights:
            # It waits for this step to end, so its caller must not be the engine's thread.
            threading.Thread(target=engine.update_weights, args=(number + 1, weights[number])).start()
            while engine._inbox.empty():
                time.sleep(1e-4)
        return results

    engine._runner.run = run_and_update  # type: ignore[method-assign]


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))
