"""The batches of `herd rl`: the groups of a step as packed tokens with their advantages."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from herd.data.loading.pack import Sample, pack
from herd.engine.model import Prompt
from herd.rl.advantages import ADVANTAGES
from herd.rl.loss import RolloutBatch
from herd.rl.prompts import Prompts
from herd.rl.record import Group
from herd.rl.rollouts import Rollouts


class RolloutBatches:
    """Batch s is a function of the journal once step s is picked; before that it waits for the groups."""

    unit = "tokens"

    def __init__(
        self,
        rollouts: Rollouts,
        *,
        advantage: str,
        prompts: Prompts,
        patch_id: int | None,
    ) -> None:
        self.rollouts, self.num_steps = rollouts, rollouts.num_steps
        self._advantages, self._prompts, self._patch_id = ADVANTAGES[advantage], prompts, patch_id

    def batch(self, step: int) -> RolloutBatch:
        """The batch of step `step`, always packed in the order of groups and members: sums do not depend on timing."""
        groups = self.rollouts.groups(step)
        admitted = self.rollouts.journal.admitted
        return pack_groups(
            groups, self._advantages, lambda group: self._prompts.prompt(admitted[group.ordinal]), self._patch_id
        )

    def cancel(self) -> None:
        """End the drawing."""
        self.rollouts.close()


def pack_groups(
    groups: Sequence[Group],
    advantages: Callable[[np.ndarray], np.ndarray],
    prompt_of: Callable[[Group], Prompt],
    patch_id: int | None,
) -> RolloutBatch:
    """Lay rollouts end to end, each a document. Learnt are the tokens that were drawn; all weigh the same."""
    samples: list[Sample] = []
    fields: tuple[list[np.ndarray], ...] = ([], [], [])
    prompts: list[np.ndarray] = []
    routes = [rollout.routes for group in groups for rollout in group.rollouts if rollout.routes is not None]
    for group in groups:
        shows = patch_id is not None and bool((group.rollouts[0].prompt == patch_id).any())
        tiles = list(prompt_of(group).tiles) if shows else []
        for rollout, advantage in zip(group.rollouts, advantages(group.rewards), strict=True):
            num_prompt = len(rollout.prompt)
            drawn = np.concatenate([np.zeros(num_prompt, dtype=bool), rollout.drawn])
            ids = np.concatenate([rollout.prompt, rollout.ids]).astype(np.int32)
            samples.append(Sample(ids=ids, learnt=drawn, kind="chat", tiles=tiles))
            prompts.append(np.where(np.arange(len(ids)) < num_prompt, group.ordinal, -1))
            behind = (
                np.where(rollout.drawn, advantage, 0).astype(np.float32),
                rollout.logprobs,
                rollout.versions(),
            )
            for rows, values in zip(fields, behind, strict=True):
                rows.append(at_targets(values, num_prompt))
    assert len(routes) in (0, len(samples)), "routes are recorded for all answers or for none"
    advantages_N, logprobs_N, versions_N = (torch.from_numpy(np.concatenate(rows)) for rows in fields)
    return RolloutBatch(
        **vars(pack(samples, patch_id=patch_id)),
        advantages_N=advantages_N,
        logprobs_N=logprobs_N,
        versions_N=versions_N,
        current_N=torch.full_like(logprobs_N, torch.nan),
        prompts_N=torch.from_numpy(np.concatenate(prompts)),
        routes_NJ=torch.from_numpy(np.concatenate(routes)) if routes else None,
    )


def at_targets(values: np.ndarray, num_prompt: int) -> np.ndarray:
    """Values of the tokens behind a prompt at the places whose targets these are."""
    placed = np.zeros(num_prompt + len(values), dtype=values.dtype)
    placed[num_prompt - 1 : -1] = values
    return placed
