"""What the model is asked for a group: messages of its environment, as the tokens and tiles of a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from herd.core.streams import seed_of
from herd.engine.model import LoadedModel, Prompt
from herd.rl.environment import Environment
from herd.rl.journal import Admitted


class Prompts:
    """The prompts of environments, by name, for a model."""

    def __init__(
        self, model: LoadedModel, environments: Mapping[str, Environment], system_prompts: Sequence[str] = ()
    ) -> None:
        self.model, self.environments, self.system_prompts = model, environments, system_prompts

    def messages(self, admitted: Admitted) -> list[dict[str, Any]]:
        """What the model is asked, with one of the system prompts where the environment has none."""
        return asked_messages(self.environments[admitted.environment], admitted, self.system_prompts)

    def prompt(self, admitted: Admitted) -> Prompt:
        """The same as tokens and tiles."""
        tools = self.environments[admitted.environment].tools
        return self.model.render(self.messages(admitted), tools=tools)


def asked_messages(environment: Environment, admitted: Admitted, system_prompts: Sequence[str]) -> list[dict[str, Any]]:
    """The messages of an admission's prompt, with one of the system prompts where it has none."""
    asked = environment.prompt(admitted.cell, admitted.index)
    if system_prompts and asked[0]["role"] != "system":
        place = seed_of(admitted.seed, "system prompt") % len(system_prompts)
        if said := system_prompts[place]:
            asked = [{"role": "system", "content": said}, *asked]
    return asked
