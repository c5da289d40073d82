"""Pairs of answers from the journal of a finished `herd rl`: of each group the best and the worst, to one prompt.

An answer is the text of one turn that ended by itself. Groups whose answers are all worth the same have no pair, nor
have those of several turns or with pictures; they are counted. Of equally good pairs that of the most equal lengths is
taken, so that a preference is not learnt for a length.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.core.files import write_atomic
from herd.core.lineage import read_lineage
from herd.data.tokens.chat import parts_of
from herd.errors import HerdError
from herd.rl.environment import open_environment
from herd.rl.journal import Journal
from herd.rl.prompts import asked_messages
from herd.rl.record import Group, Rollout

JOURNAL = "journal"
SAME, UNFINISHED = (
    "groups whose answers are worth the same",
    "groups in which all best or all worst answers are cut off",
)
TURNS, PICTURES = "groups of several turns", "groups with pictures"


def pair_rows(run: Path, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """The pairs of a folder that `herd rl` wrote, as rows with prompt, chosen and rejected; what has no pair is counted
    in `left_out`. Raises HerdError for other folders."""
    if not (run / JOURNAL).exists():
        raise HerdError(f"{run} has no journal: give a finished folder of herd rl")
    lineage = read_lineage(run)
    config, data = lineage["config"], Path(lineage["parents"]["data"]["path"])
    journal = Journal(run / JOURNAL, read_only=True)
    try:
        names = sorted({admitted.environment for admitted in journal.admitted.values()})
        environments = {name: open_environment(name, data, config["seed"]) for name in names}
        for ordinal in sorted(journal.finished):
            group, admitted = journal.group(ordinal), journal.admitted[ordinal]
            found = best_and_worst(group)
            if isinstance(found, str):
                left_out[found] += 1
                continue
            environment = environments[group.environment]
            prompt = asked_messages(environment, admitted, config["system_prompts"])
            if any(part["type"] != "text" for message in prompt for part in parts_of(message)):
                left_out[PICTURES] += 1
                continue
            chosen, rejected = ([{"role": "assistant", "content": one.text}] for one in found)
            tools = {"tools": list(environment.tools)} if environment.tools else {}
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, **tools}
    finally:
        journal.close()


def best_and_worst(group: Group) -> tuple[Rollout, Rollout] | str:
    """The pair of a group, or why it has none."""
    if not group.has_signal:
        return SAME
    if not all(one.drawn.all() for one in group.rollouts):
        return TURNS
    best, worst = ([one for one in group.rollouts if one.reward == value and not one.truncated]
                   for value in (group.rewards.max(), group.rewards.min()))  # fmt: skip
    if not (best and worst):
        return UNFINISHED
    pairs = [(one, other) for one in best for other in worst]
    return min(pairs, key=lambda pair: abs(len(pair[0].ids) - len(pair[1].ids)))


def write_pairs(run: Path, out: Path) -> tuple[int, Counter[str]]:
    """Write the pairs of a run as JSONL, whole or not at all; returns how many, and what was left out."""
    left_out: Counter[str] = Counter()
    lines = [json.dumps(row, ensure_ascii=False) for row in pair_rows(run, left_out)]
    if not lines:
        why = "; ".join(f"{count:,} {what}" for what, count in left_out.items()) or "no group was finished"
        raise HerdError(f"{run} has no pair ({why})")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, "".join(f"{line}\n" for line in lines))
    return len(lines), left_out
