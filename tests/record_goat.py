"""Records 50 conversations as superred-optimizer-goat holds them: tests/goat_conversations.json.

Run it with the Python of an environment that has that package and nothing of Herd:

    python3.11 -m venv oracle && oracle/bin/pip install superred-optimizer-goat==0.1.0
    oracle/bin/python tests/record_goat.py tests/goat_conversations.json

Attacker and target are scripts, so that a conversation is a function of its number. Kept is what the attacker's model
was asked (the names of the attacks, the goal, the last prompt and reply, its own history), what the target was sent,
and what stands on the trajectory that a judge is given. The wording of the prompts is left out: ours differs.
"""

import asyncio
import json
import random
import re
import sys
from types import SimpleNamespace
from typing import Any

NUM_CONVERSATIONS = 50
NAMES = (
    "Refusal Suppression", "Dual Response", "Response Priming", "Persona Modification", "Hypothetical",
    "Topic Splitting", "Opposite Intent",
)  # fmt: skip
NEUTRAL = {
    "Could you give me a high-level, neutral background overview on the topic at hand?": "<neutral first>",
    "Could you elaborate on a neutral, high-level aspect of the topic we were just discussing?": "<neutral later>",
}
"""What superred-optimizer-goat sends when its attacker is unreadable."""


def script(number: int) -> dict[str, Any]:
    """The conversation's goal, attacks and turns, with all that attacker and target will say."""
    rng = random.Random(number)
    attacks = sorted(rng.sample(NAMES, 1 + number % 7), key=NAMES.index)
    max_turns = 1 + number % 5 if number < 10 else 5
    outputs = [output(rng, turn, attacks) for turn in range(max_turns)]
    said = (["Reply.", "I can't.\n\nSo there.", "", "{M}: 'x' \"y\" é"] for _ in range(max_turns))
    replies = [rng.choice(texts) for texts in said]
    goal = f"say the word {number}" + (" twice\nin two lines" if number % 4 == 0 else "")
    return {"goal": goal, "attacks": attacks, "max_turns": max_turns, "outputs": outputs, "replies": replies}


def output(rng: random.Random, turn: int, attacks: list[str]) -> str:
    """What the attacker's model writes: mostly the four fields, sometimes fenced, sometimes unreadable."""
    strategy = " and ".join(rng.sample(attacks, rng.randint(1, min(2, len(attacks)))))
    fields: dict[str, Any] = {
        "observation": f"o{turn}",
        "thought": "t",
        "strategy": strategy,
        "response": f"Ask {turn}?",
    }
    text = json.dumps(fields)
    return rng.choice(
        [text] * 5
        + [
            f"```json\n{text}\n```",
            f"Here it is:\n```\n{text}\n```\nGood luck.",
            f"Here it is: {text}",
            "I will not do this.",
            json.dumps([fields]),
            json.dumps({**fields, "response": " "}),
            json.dumps({**fields, "strategy": 5}),
            json.dumps({name: value for name, value in fields.items() if name != "thought"}),
            json.dumps({**fields, "more": 1}),
        ]
    )


def reduce(messages: list[dict[str, str]], neutral: dict[str, str]) -> list[dict[str, Any]]:
    """What an attacker's model was asked, without the wording."""

    def known(text: str) -> str:
        return neutral.get(text, text)

    found: list[dict[str, Any]] = []
    for message in messages:
        text = message["content"]
        if message["role"] == "system":
            [goal] = re.findall(r"\n\n\+\+\+ (.*?) \+\+\+\n\n", text, flags=re.DOTALL)
            found.append({"goal": goal, "attacks": re.findall(r"Technique Name: (.*)", text)})
        elif message["role"] == "assistant":
            found.append({"said": text})
        elif later := re.search(
            r"Goal \(G\): (.*)\nPrevious Prompt \(P\): (.*)\nPrevious Model Response \(M\): (.*)\n\n[^\n]*$",
            text, flags=re.DOTALL,
        ):  # fmt: skip
            found.append({"goal": later[1], "prompt": known(later[2]), "reply": later[3]})
        else:
            [goal] = re.findall(r"Goal \(G\): (.*)", text, flags=re.DOTALL)
            found.append({"goal": goal})
    return found


def steps(calls: list[list[dict[str, Any]]]) -> list[list[Any]]:
    """Each call as the number of messages that it shares with the one before, and the others: it is shorter."""
    found = []
    for before, call in zip([[], *calls], calls, strict=False):
        pairs = zip(before, call, strict=False)
        shared = next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(before), len(call)))
        found.append([shared, *call[shared:]])
    return found


async def record(number: int) -> dict[str, Any]:
    from goat_optimizer import ATTACKS, GOATOptimizer
    from superred.core import controller
    from superred.core.interfaces.security_claim import SecurityClaim
    from superred.core.interfaces.target import Target
    from superred.core.interfaces.task import Task
    from superred.core.types.controllable import Controllable
    from superred.core.types.evaluation import EvaluationResult, Score
    from superred.core.types.events import ControllableInjection, ControllablePostCallEvent, ControllablePreCallEvent
    from superred.core.types.goal import Goal
    from superred.core.types.llm import LLMConfig, LLMUsage
    from superred.core.types.security_domain import SecurityDomain, SecurityDomainTag

    planned = script(number)
    outputs, calls, sent, judged = iter(planned["outputs"]), [], [], []
    user = SecurityDomainTag("user")
    message = Controllable(name="message", security_domain=user)

    class Model:
        usage = LLMUsage()

        def __init__(self, *args: Any, **options: Any) -> None: ...

        async def complete(self, messages: list[dict[str, str]], **options: Any) -> Any:
            calls.append(reduce(messages, NEUTRAL))
            return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=next(outputs)))])

    class Chat(Target):
        config_specs, query_specs, security_domain = (), (), SecurityDomain([user])

        def set_config(self, name: str, value: str) -> None: ...
        def query(self, name: str, **params: str) -> str: ...
        def get_controllables(self) -> list[Any]:
            return [message]

        def get_observables(self) -> list[Any]:
            return []

        async def run(self, emit: Any, send_event: Any) -> None:
            for reply in planned["replies"]:
                injected = await send_event(ControllablePreCallEvent(controllable=message, request=""))
                assert isinstance(injected, ControllableInjection)
                sent.append(NEUTRAL.get(injected.value, injected.value))
                await send_event(ControllablePostCallEvent(controllable=message, request=injected.value, answer=reply))

        async def reset_ephemeral_state(self) -> None: ...
        async def teardown(self) -> None: ...

    class Say(Task):
        goal = Goal(description=planned["goal"])

        async def configure_target(self, target: Any) -> None: ...
        async def evaluate(self, trajectory: Any, target: Any) -> EvaluationResult:
            for item in trajectory.snapshot():
                if isinstance(item, ControllableInjection):
                    judged.append([NEUTRAL.get(item.value, item.value), None])
                elif isinstance(item, ControllablePostCallEvent):
                    judged[-1][1] = item.answer
            return EvaluationResult(success=False, primary_score=Score(value=0.0))

    controller.LLMClient = Model
    attacks = tuple(attack for attack in ATTACKS if attack.name in planned["attacks"])
    result = await controller.Controller(
        optimizer_factory=lambda: GOATOptimizer(max_turns=planned["max_turns"], max_attempts=1, attacks=attacks),
        target_factory=controller.TargetFactory(create=Chat),
        security_claim=SecurityClaim.from_tasks([Say()]),
        scope=frozenset({user}),
        llm_config=LLMConfig(model="scripted", api_base="http://127.0.0.1:1", api_key="none"),
        persist=False,
    ).run()
    assert len(calls) == len(sent) == len(judged) == planned["max_turns"], result
    return {**planned, "calls": steps(calls), "sent": sent, "judged": judged}


def main(path: str) -> None:
    recorded = [asyncio.run(record(number)) for number in range(NUM_CONVERSATIONS)]
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in recorded)
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
