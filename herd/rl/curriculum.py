"""Which tasks are drawn next: medium to hard ones, in fixed shares of the environments. No torch, no clock.

A cell is a kind of task of one difficulty within an environment. What is known of its pass rate p is a Beta posterior,
uniform at the start, whose observations lose weight step by step, as the model changes. Inside an environment the cells
are dealt in proportion to

    E[(p^t (1 - p)^(1-t))^2],

which is largest at p = t and is E[p (1 - p)], the expected variance of a reward, at t = 1/2. The target t falls during
the run. Solved cells get none of it; a small share goes to all cells alike, and one to those that are solved.

How many tasks are dealt to have a number of groups with signal follows from the share that those before had. The
posterior stands in for it at the start alone: it takes all tasks of a cell for equally hard, so its share is too high.

Nothing is left to chance: environments get their shares, and cells their probabilities, by counting what is owed to
each. So deal() is a function of what the curriculum has seen; its seed only orders what it deals and breaks ties.

The shares of environments are those of Tijdeman, The chairman assignment problem (1980).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from herd.config.rl import CurriculumConfig
from herd.core.streams import stream
from herd.errors import HerdError

Place = tuple[str, str, int]
"""Environment, cell, index of the task in the cell."""

MOST_DEALT = 16
"""Groups that are dealt at most for one with signal."""
PRIOR_GROUPS = 4
"""Groups that the posterior counts as in the share that is expected to have signal."""


@dataclass
class _Cell:
    """What is known of a cell, and owed to it."""

    passes: float = 1.0
    """a of its posterior."""
    fails: float = 1.0
    """b of its posterior."""
    owed: float = 0.0
    """Groups that it should have had beyond those that it had."""
    next_index: int = 0
    """Index of its first task that was never dealt."""

    @property
    def pass_rate(self) -> float:
        return self.passes / (self.passes + self.fails)

    def moment(self, passes: float, fails: float) -> float:
        """E[p^passes (1 - p)^fails]."""
        with_them = _log_beta(self.passes + passes, self.fails + fails)
        return math.exp(with_them - _log_beta(self.passes, self.fails))


class Curriculum:
    """Deals tasks, each of a cell once, and follows the pass rates of the cells."""

    def __init__(
        self, cells: Mapping[str, Sequence[str]], shares: Mapping[str, float], config: CurriculumConfig
    ) -> None:
        """`cells` of each environment; `shares` of the environments, relative to each other."""
        if cells.keys() != shares.keys():
            raise HerdError(f"shares are given for {sorted(shares)}, but the environments are {sorted(cells)}")
        for name, share in shares.items():
            if not 0 < share < math.inf:
                raise HerdError(
                    f"share={share} of {name} must be above 0: leave the environment out to have none of it"
                )
            if not cells[name]:
                raise HerdError(f"{name} has no cells")
        self.config = config
        # As written: 0.6 is 3/5, so shares of whole numbers of groups are kept exactly.
        exact = {name: Fraction(str(share)) for name, share in shares.items()}
        self._shares = {name: share / sum(exact.values()) for name, share in exact.items()}
        self._dealt = dict.fromkeys(cells, 0)
        self._cells = {name: {cell: _Cell() for cell in some} for name, some in cells.items()}
        self._num_kept = self._num_seen = 0.0
        """Groups with signal, and all, the earlier ones counted for less."""

    def count(self, *, has_signal: bool) -> None:
        """What became of a group; one that failed has no signal."""
        self._num_kept += has_signal
        self._num_seen += 1

    def update(self, environment: str, cell: str, passes: float, n: int) -> None:
        """`n` answers to tasks of a cell had the rewards `passes` in all, each from 0 to 1."""
        assert 0 <= passes <= n
        found = self._cells[environment][cell]
        found.passes += passes
        found.fails += n - passes

    def end_step(self) -> None:
        """The model has changed: what was seen of it counts for less."""
        for cell in (cell for some in self._cells.values() for cell in some.values()):
            cell.passes = 1 + self.config.forgetting * (cell.passes - 1)
            cell.fails = 1 + self.config.forgetting * (cell.fails - 1)
        self._num_kept *= self.config.forgetting
        self._num_seen *= self.config.forgetting

    def deal(self, count: int, seed: int, wave: int, num_waves: int) -> list[Place]:
        """The next `count` tasks, of wave `wave` of `num_waves`, mixed. No task is dealt twice."""
        rng = stream(seed, "curriculum", wave, sum(self._dealt.values()))
        places = []
        for name, groups in self._environments(count).items():
            cells = self._cells[name]
            chances = self.chances(name, wave, num_waves)
            # All cells, in an order that decides between equals.
            order = [list(cells)[place] for place in rng.permutation(len(cells))]
            for _ in range(groups):
                for cell, chance in chances.items():
                    cells[cell].owed += chance
                chosen = max(order, key=lambda cell: cells[cell].owed)
                cells[chosen].owed -= 1
                places.append((name, chosen, cells[chosen].next_index))
                cells[chosen].next_index += 1
        return [places[place] for place in rng.permutation(len(places))]

    def mark(self, place: Place) -> None:
        """Take a task as dealt, of a run that goes on."""
        environment, cell, index = place
        found = self._cells[environment][cell]
        found.next_index = max(found.next_index, index + 1)
        self._dealt[environment] += 1

    def chances(self, environment: str, wave: int, num_waves: int) -> dict[str, float]:
        """The share of each cell in an environment's groups of a wave."""
        cells, config = self._cells[environment], self.config
        everywhere = dict.fromkeys(cells, 1.0)
        solved = {name: 1.0 for name, cell in cells.items() if cell.pass_rate > config.solved_pass_rate}
        power = 2 * config.target_at(wave / max(1, num_waves - 1))
        useful = {name: cell.moment(power, 2 - power) for name, cell in cells.items() if name not in solved}
        parts = [
            (everywhere, config.explore),
            (solved, config.revisit),
            (useful, 1 - config.explore - config.revisit),
        ]
        if config.uniform or not useful:
            parts = [(everywhere, 1.0)]
        whole = sum(share for weights, share in parts if weights)  # without solved cells, the others get their share
        chances = dict.fromkeys(cells, 0.0)
        for weights, share in parts:
            total = sum(weights.values())
            for name, weight in weights.items():
                chances[name] += share / whole * weight / total
        return chances

    def pass_rate(self, environment: str, cell: str) -> float:
        """The mean of a cell's posterior."""
        return self._cells[environment][cell].pass_rate

    def keep_rate(self, group_size: int, wave: int, num_waves: int) -> float:
        """The share of the groups of a wave that is expected to have signal, of rewards that are 0 or 1:
        E[1 - p^G - (1-p)^G]. An upper bound, as it takes all tasks of a cell for equally hard."""
        kept = 0.0
        for name, share in self._shares.items():
            for cell, chance in self.chances(name, wave, num_waves).items():
                found = self._cells[name][cell]
                kept += float(share) * chance * (1 - found.moment(group_size, 0) - found.moment(0, group_size))
        return kept

    def num_to_deal(self, wanted: int, group_size: int, wave: int, num_waves: int) -> int:
        """How many tasks give `wanted` groups with signal, if their share is that of the groups before."""
        prior = PRIOR_GROUPS * self.keep_rate(group_size, wave, num_waves)
        share = (self._num_kept + prior) / (self._num_seen + PRIOR_GROUPS)
        return math.ceil(wanted / max(share, 1 / MOST_DEALT))

    def describe(self) -> str:
        """The pass rates of all cells."""
        rates = [
            f"{name} {cell} {found.pass_rate:.2f}" for name, some in self._cells.items() for cell, found in some.items()
        ]
        return ", ".join(rates)

    def state(self) -> dict[str, Any]:
        """All that it has seen and dealt, for JSON."""
        cells = {name: {cell: asdict(found) for cell, found in some.items()} for name, some in self._cells.items()}
        return {"dealt": dict(self._dealt), "cells": cells, "kept": self._num_kept, "seen": self._num_seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what state() gave."""
        before = {name: set(some) for name, some in state["cells"].items()}
        now = {name: set(some) for name, some in self._cells.items()}
        if before != now:
            raise HerdError(
                f"the cells of the saved curriculum are {before}, those of the environments {now}: start over with "
                "--restart"
            )
        self._dealt = {name: state["dealt"][name] for name in self._dealt}
        self._num_kept, self._num_seen = state["kept"], state["seen"]
        self._cells = {
            name: {cell: _Cell(**state["cells"][name][cell]) for cell in some} for name, some in self._cells.items()
        }

    def _environments(self, count: int) -> dict[str, int]:
        """How many of the next `count` groups each environment gets: after any number of groups, none has one more or
        one less than its share. Of those that are behind their share, the one that must be dealt soonest comes next."""
        before, dealt = dict(self._dealt), self._dealt
        first = sum(dealt.values()) + 1
        for total in range(first, first + count):
            behind = [name for name, share in self._shares.items() if dealt[name] < share * total]
            dealt[min(behind, key=lambda name: math.ceil((dealt[name] + 1) / self._shares[name]))] += 1
        return {name: number - before[name] for name, number in dealt.items()}


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
