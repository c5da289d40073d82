"""The attacker's plan equals that of superred-optimizer-goat 0.1.0 on 50 conversations that it held.

tests/record_goat.py has how they were recorded. HERD_GOAT_ORACLE names the Python of an environment with that package;
the slow test then records them again.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from record_goat import NUM_CONVERSATIONS, reduce, script, steps
from red_team_world import Scripted

from herd.guard.red_team.attacker import NEUTRAL_FIRST, NEUTRAL_LATER, ModelAttacker
from herd.guard.red_team.attacks import attack_named
from herd.guard.red_team.conversation import converse, replies_of

TESTS = Path(__file__).parents[1]
RECORDED = TESTS / "goat_conversations.json"
NEUTRAL = {NEUTRAL_FIRST: "<neutral first>", NEUTRAL_LATER: "<neutral later>"}
CONVERSATIONS: list[dict[str, Any]] = json.loads(RECORDED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("recorded", CONVERSATIONS, ids=range(NUM_CONVERSATIONS))
def test_the_plan_is_that_of_the_oracle(recorded: dict[str, Any]):
    outputs, replies = iter(recorded["outputs"]), iter(recorded["replies"])
    model = Scripted(lambda messages, seed: next(outputs))
    attacks = [attack_named(name) for name in recorded["attacks"]]
    exchanges = converse(
        Scripted(lambda messages, seed: next(replies)),
        ModelAttacker(model, recorded["goal"], attacks),
        max_turns=recorded["max_turns"],
        seed=0,
    )
    assert steps([reduce(messages, NEUTRAL) for messages in model.asked]) == recorded["calls"]
    judged = [[NEUTRAL.get(prompt, prompt), reply] for prompt, reply in replies_of(exchanges)]
    assert judged == recorded["judged"]
    assert [prompt for prompt, _ in judged] == recorded["sent"]


def test_the_recorded_conversations_have_all_attacks_turns_and_failures():
    assert len(CONVERSATIONS) == NUM_CONVERSATIONS
    assert {len(one["attacks"]) for one in CONVERSATIONS} == set(range(1, 8))
    assert {one["max_turns"] for one in CONVERSATIONS} == set(range(1, 6))
    sent = [message for one in CONVERSATIONS for message in one["sent"]]
    assert sent.count("<neutral first>") > 10 and sent.count("<neutral later>") > 10
    assert sum(reply == "" for one in CONVERSATIONS for reply in one["replies"]) > 10
    for number, one in enumerate(CONVERSATIONS):  # the script has not changed since
        assert {name: one[name] for name in script(number)} == script(number)


@pytest.mark.slow
@pytest.mark.skipif("HERD_GOAT_ORACLE" not in os.environ, reason="HERD_GOAT_ORACLE: see tests/record_goat.py")
def test_the_oracle_holds_them_again(tmp_path: Path):
    again = tmp_path / "again.json"
    subprocess.run([os.environ["HERD_GOAT_ORACLE"], TESTS / "record_goat.py", again], check=True)
    assert again.read_bytes() == RECORDED.read_bytes()
