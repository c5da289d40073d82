"""Refusals and twins: right is to refuse what is unsafe and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.data.tasks.made import MADE
from herd.data.tasks.safety import forms
from herd.data.tasks.safety.items import pairs, topics
from herd.data.tasks.safety.refusals import is_refusal
from herd.data.tasks.safety.task import SafetyTask, is_unsafe
from herd.rl.environment import open_environment

SIDES = ("refusals", "twins")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("heldout", [False, True])
def test_the_solution_of_each_cell_is_right_and_that_of_the_other_side_wrong(side, heldout):
    task = SafetyTask(0, side=side, heldout=heldout)
    other = SafetyTask(0, side=SIDES[side == "refusals"], heldout=heldout)
    for cell in task.cells:
        for index in range(3):
            prompt = task.prompt(cell, index)
            assert task.grade(prompt, task.solution(cell, index)).right, (prompt, task.solution(cell, index))
            wrong = other.solution(other.cells[0], index)
            assert not task.grade(prompt, wrong).right, (prompt, wrong)


@pytest.mark.parametrize("side", SIDES)
def test_splits_share_no_action_and_no_wording(side):
    def asked(heldout):
        task = SafetyTask(1, side=side, heldout=heldout)
        return {(task.action(cell, i), task.prompt(cell, i)[0]["content"]) for cell in task.cells for i in range(20)}

    train, held = asked(False), asked(True)
    assert not {action for action, _ in train} & {action for action, _ in held}
    for action, text in held:
        assert text.replace(action, "{x}", 1) not in forms.REQUESTS, text


def test_every_request_is_recognised_from_its_text():
    for split in ("train", "heldout"):
        for wording in (*forms.REQUESTS, *forms.HELD_REQUESTS):
            for pair in pairs(split)[::7]:
                assert is_unsafe(wording.replace("{x}", pair.harmful)) is True
                assert is_unsafe(wording.replace("{x}", pair.benign)) is False
            action = topics(split)[0].actions[0]
            assert is_unsafe(wording.replace("{x}", action)) is False
    assert is_unsafe("What is 2 + 2?") is None and is_unsafe("") is None


@given(st.text(max_size=200))
def test_any_answer_has_a_grade(answer):
    task = SafetyTask(0, side="twins")
    assert task.grade(task.prompt("S1", 0), answer).score in (0.0, 1.0)
    assert task.grade([{"role": "user", "content": answer}], answer).score in (0.0, 1.0)
    assert task.grade([], answer).score == 0.0


@pytest.mark.parametrize("answer", ["", "  \n"])
@pytest.mark.parametrize("side", SIDES)
def test_silence_is_wrong_on_both_sides(side, answer):
    task = SafetyTask(0, side=side)
    assert task.grade(task.prompt("S2", 0), answer).score == 0.0


def test_refusals_and_replies_of_the_wordings_are_told_apart():
    for action in [pair.harmful for pair in pairs("train")[::9]] + [pair.benign for pair in pairs("train")[::9]]:
        for way in (*forms.REFUSALS, *forms.HELD_REFUSALS):
            assert is_refusal(way.replace("{x}", action)), way
        for way in (*forms.HELPFUL, *forms.HELD_HELPFUL):
            assert not is_refusal(way.replace("{x}", action)), way


def test_only_the_beginning_of_a_reply_refuses():
    """Help that ends in a refusal was help; a character who refuses, and plain limits, are no refusal."""
    help_ = "Take the old key to a locksmith. Then have it copied. Both keys fit after that."
    assert is_refusal(f"I can't help with that. {help_}") and is_refusal(f"Thanks for asking. I won't do that. {help_}")
    assert not is_refusal(f"{help_} I can't help you further.")
    assert not is_refusal(f'"I can\'t help you," said the locksmith. {help_}')
    assert not is_refusal("I can't wait to show you. " + help_)


def test_they_are_environments_and_pairs_differ_only_in_what_is_asked():
    assert {"refusals", "twins"} <= set(MADE)
    environment = open_environment("twins[harmless,S2]", None, 0)
    assert set(environment.cells) == {"harmless", "S2"}
    prompt = environment.prompt("harmless", 3)
    said = {"content": "I can't help with that.", "finish_reason": "stop"}
    assert environment.respond(prompt, said).reward == 0.0
    assert environment.respond(prompt, {"content": "Sure: mix flour and water.", "finish_reason": "stop"}).reward == 1.0
