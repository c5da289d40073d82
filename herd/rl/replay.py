"""Draws rollouts once more, to the bit, from prompt, seed and spans and from the weights of each version.

What makes that possible is one rule of the engine: a prompt is read by the weights that draw the first token behind it
(in a later turn, all that was said before), and the keys and values of a drawn token are computed by the weights that
draw the next one. So new weights come between two tokens, and what was computed before them stays.

Versions are loaded in their order, each once; all rollouts that it has a part in go on together until their next span.
The forward and the sampler are the engine's, so the bits are the same in fp32 where those of an answer do not depend
on what is computed beside it (docs/rl.md). Left out: pictures; answers that were preempted after new weights had come,
which the engine reads again by these. That of herd rl has room for all and preempts none.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from herd.core.streams import seed_of
from herd.engine.model import LoadedModel, Prompt
from herd.engine.pages import PageManager
from herd.engine.runner import Runner, TokenRequest
from herd.engine.sampler import Row, SamplingParams, sample
from herd.engine.scheduler import ScheduledRequest, Step
from herd.engine.weights import replace_weights
from herd.errors import HerdError
from herd.model.cache import KVCache
from herd.rl.record import Rollout

AT_ONCE = 64
"""Rollouts of one forward."""
PARAMS = SamplingParams(temperature=1.0, logprobs=0)
NO_TOKENS = torch.zeros(0, dtype=torch.int64)


def redraw(
    model: LoadedModel, rollouts: Sequence[Rollout], weights: Callable[[int], Mapping[str, Tensor]]
) -> list[Rollout]:
    """The rollouts with the tokens and log-probabilities that are drawn now; what an environment said stays as it is.

    `weights` gives all tensors of a version, which replace those of `model`. There is a cache for all the rollouts:
    give those of a long run in parts. Raises HerdError for a prompt with pictures.
    """
    if any((one.prompt == model.config.special.patch).any() for one in rollouts):
        raise HerdError("a prompt has a picture: only rollouts of text are drawn again")
    pages, cache = _room(model, [len(one.prompt) + len(one.ids) for one in rollouts])
    runner = Runner(model, cache)
    answers = [_Answer(rollout=one, versions=one.versions()) for one in rollouts]
    with torch.inference_mode():
        for version in sorted({span.version for one in rollouts for span in one.spans}):
            replace_weights(model.transformer, weights(version))
            while ready := [one for one in answers if one.next_version == version][:AT_ONCE]:
                _step(runner, pages, ready)
    return [
        replace(one.rollout, ids=np.array(one.ids, np.uint32), logprobs=np.array(one.logprobs, np.float32))
        for one in answers
    ]


@dataclass(kw_only=True, eq=False)
class _Answer:
    """A rollout as far as it is drawn again."""

    rollout: Rollout
    versions: np.ndarray
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turn: TokenRequest | None = None
    """What is computed of the turn; None before its first forward."""
    place: int = 0
    """Tokens that the turn has."""
    seed: int = -1
    """Of the turn."""

    @property
    def next_version(self) -> int | None:
        """That of the next token; None at the end."""
        return int(self.versions[len(self.ids)]) if len(self.ids) < len(self.versions) else None

    def begin_turn(self) -> TokenRequest:
        """The turn of the next drawn token, behind what the environment said."""
        self.seed = self.rollout.seed if self.seed < 0 else seed_of(self.seed, "turn")
        ids = [*self.rollout.prompt.tolist(), *self.ids]
        self.place = 0
        self.turn = TokenRequest(
            content=ids, ids=ids, num_prompt=len(ids), limit=len(ids), prompt=Prompt(token_ids=ids)
        )
        return self.turn

    def push(self, token: int, logprob: float | None) -> None:
        assert self.turn is not None and logprob is not None
        self.turn.append(token)
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.place += 1

    def hear(self, pages: PageManager) -> None:
        """Append what the environment says next, which ends the turn."""
        drawn, begin = self.rollout.drawn, len(self.ids)
        end = begin
        while end < len(drawn) and not drawn[end]:
            end += 1
        if self.turn is not None and (end > begin or end == len(drawn)):
            pages.release(self.turn.table)
            self.turn = None
        self.ids += self.rollout.ids[begin:end].tolist()
        self.logprobs += [0.0] * (end - begin)

    def row(self) -> Row:
        return Row(params=PARAMS, seed=self.seed, place=self.place, counts=Counter(), prompt=NO_TOKENS)


def _room(model: LoadedModel, lengths: Sequence[int]) -> tuple[PageManager, KVCache]:
    config, weight = model.config, model.transformer.embedding.weight
    size = config.page_tokens
    num_global = sum(-(-length // size) for length in lengths)
    num_local = sum(-(-min(length, config.chunk_size) // size) for length in lengths)
    pages = PageManager(page_tokens=size, chunk_size=config.chunk_size, num_global=num_global, num_local=num_local)
    cache = KVCache(config, num_global=num_global, num_local=num_local, dtype=weight.dtype, device=weight.device)
    return pages, cache


def _step(runner: Runner, pages: PageManager, answers: Sequence[_Answer]) -> None:
    """The next piece of a prompt, or the next token, of each."""
    step: Step[TokenRequest] = Step()
    of: dict[TokenRequest, _Answer] = {}
    for one in answers:
        turn = one.turn or one.begin_turn()
        begin = turn.table.length
        end = min(len(turn.ids), (begin // pages.chunk_size + 1) * pages.chunk_size)
        pages.extend(turn.table, end)
        step.scheduled[turn] = ScheduledRequest(turn, begin, end)
        of[turn] = one
    results = zip(step.scheduled.values(), runner.run(step), strict=True)
    drawing = {of[one.request]: result.logits_RV for one, result in results if one.num_logits}
    if not drawing:
        return
    draws = sample(torch.cat(list(drawing.values())), [one.row() for one in drawing])
    for one, token, logprob in zip(drawing, draws.tokens, draws.logprobs, strict=True):
        one.push(token, logprob)
        one.hear(pages)
