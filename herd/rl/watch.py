"""A hook of the loop: what is recorded of the groups of each step, and the alarms that follow from it."""

from collections.abc import Mapping

from herd.rl.environment import Environment, TaskEnvironment
from herd.rl.facts import alarms, drawing_facts, shuffled_facts, training_facts
from herd.rl.record import Group
from herd.rl.rollouts import Rollouts
from herd.train.checkpoint import State
from herd.train.optimizer import Optimizer


class Watch:
    """Counts as drawn for a step what was drawn up to the newest group that it is trained on."""

    def __init__(self, rollouts: Rollouts, environments: Mapping[str, Environment]) -> None:
        self.rollouts, self.environments = rollouts, environments
        self._tasks = all(isinstance(one, TaskEnvironment) for one in environments.values())
        self._steps: list[dict[str, float]] = []
        self._alarms: set[str] = set()

    def after_step(self, step: int, optimizer: Optimizer, *, updated: bool) -> dict[str, object]:
        """The facts of the step that was trained."""
        picked, drawn = self.rollouts.groups(step), self.rollouts.drawn_for(step)
        facts = drawing_facts(drawn, len(drawn[0].rollouts))
        num_drawn = sum(group.num_drawn for group in drawn)
        facts |= training_facts(picked, num_drawn, version=step, num_asked=self.rollouts.num_groups)
        if self._tasks:  # of those, grading costs nothing
            facts |= shuffled_facts(drawn, self._grade, len(drawn[0].rollouts))
        self._steps.append(facts)
        found = alarms(self._steps)
        for line in found:
            if (kind := line.split(":")[-1]) not in self._alarms:
                self._alarms.add(kind)
                print(f"rl: step {step}: {line}", flush=True)
        return {**facts, **({"alarms": found} if found else {})}

    def _grade(self, group: Group, text: str) -> float:
        environment = self.environments[group.environment]
        asked = environment.prompt(group.cell, group.index)
        return environment.respond(asked, {"role": "assistant", "content": text}).reward or 0.0

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None: ...
