"""What `herd guard attack` does with its options, and the lines that it ends with."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from herd.config.attack import AttackConfig
from herd.guard.red_team.goals import EMBEDDED, choose, read_goals
from herd.guard.red_team.run import attack
from herd.guard.target import AskConfig, Target, open_target

MODEL_TOKENS = 512
"""Longest output of a model that attacks or judges."""


def attack_command(
    target: str,
    out: Path,
    config: AttackConfig,
    *,
    goals: Path | None,
    attacker: str,
    judge: str,
    models: Mapping[str, str],
    keys: Mapping[str, str],
) -> dict[str, Any]:
    """Open what is asked, attack, close, and return the results."""
    chosen = choose(read_goals(goals) if goals else EMBEDDED, config.categories, config.num_goals)
    asked = {
        "target": AskConfig(temperature=config.temperature, max_tokens=config.max_tokens, timeout_s=config.timeout_s),
        "attacker": AskConfig(temperature=1.0, max_tokens=MODEL_TOKENS, timeout_s=config.timeout_s),
        "judge": AskConfig(temperature=0.0, max_tokens=MODEL_TOKENS, timeout_s=config.timeout_s),
    }
    with ExitStack() as stack:

        def opened(who: str, place: str) -> Target:
            one = open_target(place, asked[who], model=models[who], api_key=keys[who])
            return stack.enter_context(closing(one))

        return attack(
            opened("target", target),
            chosen,
            config,
            out,
            attacker=opened("attacker", attacker) if attacker else None,
            judge=opened("judge", judge) if judge else None,
        )


def summary(results: Mapping[str, Any]) -> Iterator[str]:
    """The results in a few lines."""
    outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in results["outcomes"].items())
    yield f"{results['conversations']:,} of {results['planned']:,} conversations: {outcomes}"
    if results["stopped"]:
        yield f"stopped early, as the target did not answer: {results['stopped']}; re-run the same command to go on"
    rows = [*results["attacks"], {"attack": "combined", **results["combined"]}, {"attack": "any", **results["all"]}]
    for row in rows:
        yield f"  {row['attack']:<20} " + "   ".join(
            _rate(name, rate) for name, rate in row.items() if name.startswith("asr@") and _asked(rate)
        )
    if results["outcomes"]["could not judge"]:
        reasons = ", ".join(f"{why} ({count:,})" for why, count in results["could_not_judge"].items())
        yield f"could not judge: {reasons}"
    if results["attacker_failures"]:
        yield f"the attacker was unreadable in {results['attacker_failures']:,} of {results['turns']:,} turns"


def _asked(rate: Mapping[str, Any]) -> bool:
    return bool(rate["count"] or rate["could_not_judge"])


def _rate(name: str, rate: Mapping[str, Any]) -> str:
    if not rate["count"]:
        return f"{name} unknown: could not judge {rate['could_not_judge']}"
    low, high = f"{100 * rate['low']:.1f}", f"{100 * rate['high']:.1f}"
    unjudged = f", could not judge {rate['could_not_judge']}" if rate["could_not_judge"] else ""
    return f"{name} {100 * rate['share']:.1f} % ({low} to {high}, {rate['hits']} of {rate['count']}{unjudged})"
