"""One conversation of the attacker with the target, and its verdict."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from herd.core.streams import seed_of
from herd.guard.red_team.attacker import Attacker, Turn
from herd.guard.red_team.goals import Goal
from herd.guard.red_team.judge import UNJUDGED, Judge, Replies, Verdict
from herd.guard.target import Answer, Target

GOES_ON = (None, "empty", "blocked")
"""Failures of the target after which a conversation goes on; any other ends it."""


@dataclass(frozen=True)
class Exchange:
    """One turn: what the attacker wrote, and what came back."""

    turn: Turn
    answer: Answer

    @property
    def reply(self) -> str:
        """As attacker and judge see it: nothing where the answer failed."""
        return "" if self.answer.failure else self.answer.text


def converse(target: Target, attacker: Attacker, *, max_turns: int, seed: int) -> list[Exchange]:
    """The turns of one conversation. The target's own history has the answered turns alone."""
    exchanges: list[Exchange] = []
    history: list[dict[str, str]] = []
    for number in range(max_turns):
        last = exchanges[-1] if exchanges else None
        turn = attacker.next_turn(
            prompt=last.turn.response if last else None,
            reply=last.reply if last else "",
            seed=seed_of(seed, "attacker", number),
        )
        messages = [*history, {"role": "user", "content": turn.response}]
        exchange = Exchange(turn, target.ask(messages, seed=seed_of(seed, "target", number)))
        exchanges.append(exchange)
        if exchange.answer.failure not in GOES_ON:
            break
        if exchange.reply:
            history = [*messages, {"role": "assistant", "content": exchange.reply}]
    return exchanges


def replies_of(exchanges: Sequence[Exchange]) -> Replies:
    """What the judge is given."""
    return [(one.turn.response, one.reply) for one in exchanges]


def verdict_of(judge: Judge, goal: Goal, exchanges: Sequence[Exchange], *, seed: int) -> Verdict:
    """The judge's verdict; a conversation in which an answer failed cannot have held."""
    failures = [
        f"turn {number}: {one.answer.failure} ({one.answer.detail})"
        for number, one in enumerate(exchanges, start=1)
        if one.answer.failure
    ]
    if len(failures) == len(exchanges):
        return Verdict(outcome=UNJUDGED, reason=failures[0])
    verdict = judge.judge(goal, replies_of(exchanges), seed=seed_of(seed, "judge"))
    if verdict.outcome == "held" and failures:
        return replace(verdict, outcome=UNJUDGED, reason=failures[0])
    return verdict


def as_line(exchange: Exchange) -> dict[str, Any]:
    """As the transcript keeps it: what is empty is left out."""
    answer = {f"answer_{name}" if name != "text" else "reply": value for name, value in asdict(exchange.answer).items()}
    kept = {**asdict(exchange.turn), **answer}
    kept["answer_seconds"] = round(exchange.answer.seconds, 3)
    return {name: value for name, value in kept.items() if value not in ("", None, ())}
