"""The report's section about learning from rewards, from a stage's metrics and journal."""

import json
import math
from pathlib import Path

import evaluate_world as world
import numpy as np
import pytest
from rl_groups import group, rollout

from herd.core.files import write_json
from herd.data.tokens.tokenizer import train_tokenizer
from herd.evaluate.report import report
from herd.evaluate.rewards import (
    MOST_CELLS,
    MOST_CHARACTERS,
    counts,
    first_and_last,
    learned_from_rewards,
    reward_charts,
    sample,
    samples,
)
from herd.evaluate.run_folder import StageFolder, read_stages
from herd.rl.journal import Admitted, Dropped, Finished, Journal, Picked
from herd.rl.record import Group

STEPS = 20


def metrics(step: int) -> dict[str, object]:
    line: dict[str, object] = {
        "step": step, "loss": 0.01, "reward": step / STEPS, "pass@1": step / STEPS, "pass@16": 0.5, "pass@8": 0.4,
        "pass@1_shuffled": 0.1, "truncated": 0.0, "entropy": 1.0 - step / 40, "age": 1.0, "age_max": 2.0,
        "ratio": 0.5, "ratio_squared": 0.5, "k3": 1e-4, "drift_age_0": 0.1, "drift_age_10": 0.3, "drift_age_2": 0.2,
        "clipped": 0.0, "masked": 0.0, "length": 7.0, "length_max": 14.0, "with_signal": 0.5, "drawn_per_trained": 2.0,
        "tokens_per_s": 100,
    }  # fmt: skip
    return line | ({"alarms": ["30% of the answers are cut off at their limit <now>"]} if step > 17 else {})


def write_stage(folder: Path, groups: list[Group], *, picked: dict[int, tuple[int, ...]]) -> Path:
    """A stage of RL in which `groups` were drawn."""
    folder.mkdir(parents=True)
    lines = [json.dumps(metrics(step)) for step in range(STEPS)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    journal = Journal(folder / "journal")
    for one in groups:
        journal.append(
            Admitted(
                ordinal=one.ordinal,
                wave=0,
                environment=one.environment,
                cell=one.cell,
                index=one.index,
                seed=0,
                version=0,
            )
        )
        journal.append(Finished(one))
        if not one.has_signal:
            journal.append(Dropped(one.ordinal, "all rewards are equal"))
    for step, ordinals in picked.items():
        journal.append(Picked(step, ordinals))
    journal.close()
    return folder


GROUPS = [group(0), group(1, (1.0, 1.0)), group(2, cell="n=5"), group(3, (0.0, 0.5, 1.0))]


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """A run whose RL goes on."""
    run = tmp_path / "run"
    write_stage(run / "rl.partial", GROUPS, picked={0: (0, 2), 1: (3,)})
    return run


def test_every_curve_is_drawn_and_what_was_not_measured_is_not() -> None:
    page = "".join(reward_charts([metrics(step) for step in range(STEPS)]))
    for words in (
        "reward",
        "shuffled",
        "Age",
        "ESS",
        "k3",
        "by age",
        "clipped",
        "Entropy",
        "cut off",
        "drawn for each",
    ):
        assert words in page
    # By number, not by letter.
    assert page.index("pass@8</span>") < page.index("pass@16</span>") < page.index("pass@1 shuffled</span>")
    assert page.index("age 0</span>") < page.index("age 2</span>") < page.index("age 10</span>")
    assert len(reward_charts([{"step": 0, "reward": 1.0}, {"step": 1, "reward": 1.0}])) == 1
    assert reward_charts([{"step": 0, "loss": 1.0}]) == []


def test_the_effective_sample_size_is_that_of_the_ratios() -> None:
    ratios = np.random.default_rng(0).lognormal(size=1000)
    line = {"step": 0, "reward": 0.0, "ratio": ratios.mean(), "ratio_squared": np.mean(ratios**2)}
    rows = {words: last for words, _, last in first_and_last([line])}
    assert rows["effective sample size"] == pytest.approx(ratios.sum() ** 2 / (ratios**2).sum() / 1000)
    assert math.isfinite(rows["mean reward"])


def test_the_table_has_the_first_and_the_last_tenth() -> None:
    rows = {words: (first, last) for words, first, last in first_and_last([metrics(step) for step in range(STEPS)])}
    assert rows["mean reward"] == (0.5 / STEPS, 18.5 / STEPS)
    assert rows["pass@1, shuffled"] == (pytest.approx(0.1), pytest.approx(0.1))
    assert "age, versions" in rows and "pass@16" in rows


def test_a_stage_that_did_not_learn_from_rewards_has_no_section(tmp_path: Path) -> None:
    assert learned_from_rewards(StageFolder(path=tmp_path, lineage={}, metrics=[{"step": 0, "loss": 1.0}])) is None


def test_of_each_cell_the_newest_trained_group_is_shown_with_a_right_and_a_wrong_answer(running: Path) -> None:
    [stage] = read_stages(running)
    found = learned_from_rewards(stage)
    assert found is not None
    assert [one["of"] for one in found["samples"]] == ["digits, n=3, task 3, step 1", "digits, n=5, task 2, step 0"]
    assert found["samples"][0]["rewards"] == [1.0, 0.5, 0.0]
    assert [(one["reward"], one["is_right"]) for one in found["samples"][0]["answers"]] == [(1.0, True), (0.0, False)]
    assert found["counts"] == {
        "admitted": 4, "drawn and judged": 4, "trained": 3, "dropped: all rewards are equal": 1,
    }  # fmt: skip
    assert found["alarms"] == [(step, metrics(19)["alarms"][0]) for step in (18, 19)]  # type: ignore[index]


def test_the_page_of_a_running_stage_has_all_of_it(running: Path) -> None:
    page = (report(running, running / "report") / "report.html").read_text(encoding="utf-8")
    assert "Learning from rewards" in page and "Policy loss" in page and "Loss, nats per token" not in page
    assert "cut off at their limit &lt;now&gt;" in page and "step 19" in page
    assert "Groups: admitted 4, drawn and judged 4, trained 3, dropped: all rewards are equal 1." in page
    assert page.count("7 8 9") == 4


def test_a_missing_or_damaged_journal_leaves_the_curves(running: Path) -> None:
    journal = running / "rl.partial" / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:40] + b"?" + whole[41:])
    page = (report(running, running / "report") / "report.html").read_text(encoding="utf-8")
    assert "No answers can be shown" in page and "Mean reward" in page
    journal.unlink()
    page = (report(running, running / "report") / "report.html").read_text(encoding="utf-8")
    assert "cannot be opened" in page and "7 8 9" not in page


def test_a_finished_stage_shows_what_was_asked_by_roles(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["sort the digits of a number"] * 9, 600)
    ids, _ = tokenizer.encode_marked("<|header_start|>user<|header_end|>\n\nsort 3 1<|eot|>")
    asked = group(0, prompt=np.array(ids, np.uint32))
    folder = write_stage(tmp_path / "run" / "rl", [asked], picked={0: (0,)})
    tokenizer.save(folder)
    write_json(folder / "herd.json", world.lineage("rl"))
    [stage] = read_stages(tmp_path / "run")
    found = learned_from_rewards(stage)
    assert found is not None and found["samples"][0]["prompt"] == "user\nsort 3 1"


def test_many_cells_and_long_answers_are_cut(tmp_path: Path) -> None:
    many = [group(ordinal, cell=f"n={ordinal}") for ordinal in range(3 * MOST_CELLS)]
    folder = write_stage(tmp_path / "rl", many, picked={0: tuple(range(len(many)))})
    journal = Journal(folder / "journal", read_only=True)
    assert 1 < len(samples(journal, None)) <= MOST_CELLS
    assert counts(journal)["trained"] == len(many)
    journal.close()
    long = rollout(text="x" * 5000, reward=1.0)
    alone = Group(ordinal=0, environment="digits", cell="n=3", index=0, rollouts=(long, rollout(1, reward=1.0)))
    [answer] = sample(alone, 0, None)["answers"]
    assert len(answer["text"]) < MOST_CHARACTERS + 10 and answer["is_right"]
