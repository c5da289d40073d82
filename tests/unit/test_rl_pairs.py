"""Pairs from a journal: the best and the worst answer of a group, and what has no pair."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rl_world import Parity, make_brief_world, settings

from herd.cli import main
from herd.config import DpoConfig
from herd.core.files import write_json
from herd.core.lineage import read_lineage
from herd.errors import HerdError
from herd.rl.journal import Admitted, Finished, Journal
from herd.rl.pairs import SAME, TURNS, UNFINISHED, best_and_worst, pair_rows, write_pairs
from herd.rl.record import Group, Rollout, Span
from herd.stages.dpo import dpo, read_pairs
from herd.stages.rl import rl


def rollout(member: int, reward: float, length: int = 3, finish: str = "stop", heard: int = 0) -> Rollout:
    drawn = np.arange(length) >= heard
    return Rollout(
        member=member, seed=member, attempt=0, prompt=np.arange(2, dtype=np.uint32), drawn=drawn,
        ids=np.arange(length, dtype=np.uint32), logprobs=np.zeros(length, np.float32), finish=finish,
        spans=(Span(begin=0, version=0),), text=f"answer {member}", reward=reward,
    )  # fmt: skip


def group(*rollouts: Rollout) -> Group:
    return Group(ordinal=0, environment="e", cell="c", index=0, rollouts=rollouts)


def test_the_pair_is_of_the_most_equal_lengths_among_the_best_and_the_worst() -> None:
    found = best_and_worst(
        group(rollout(0, 1.0, 9), rollout(1, 0.0, 3), rollout(2, 1.0, 5), rollout(3, 0.5, 5), rollout(4, 0.0, 6))
    )
    assert not isinstance(found, str)
    assert [one.member for one in found] == [2, 4]


def test_groups_without_a_pair_are_told_apart() -> None:
    assert best_and_worst(group(rollout(0, 0.5), rollout(1, 0.5))) == SAME
    assert best_and_worst(group(rollout(0, 1.0), rollout(1, 0.0, heard=1))) == TURNS
    assert best_and_worst(group(rollout(0, 1.0), rollout(1, 0.0, finish="length"))) == UNFINISHED
    assert not isinstance(best_and_worst(group(*(rollout(i, float(i > 1), finish="length" if i == 0 else "stop")
                                                 for i in range(3)))), str)  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a run of RL that began with it."""
    folder = tmp_path_factory.mktemp("rl")
    world = make_brief_world(folder)
    config = settings(Parity, num_steps=3, groups=6, max_tokens=24, group_size=6, system_prompts=("", "Be brief."))
    return world[0], rl(config, *world, folder / "run")


def test_rows_are_those_of_the_journal_with_the_prompts_that_the_model_had(ran: tuple[Path, Path]) -> None:
    left_out: Counter[str] = Counter()
    rows = list(pair_rows(ran[1], left_out))
    journal = Journal(ran[1] / "journal", read_only=True)
    assert len(rows) + sum(left_out.values()) == len(journal.finished) >= 18 and len(rows) > 3
    assert {row["prompt"][0]["role"] for row in rows} == {"system", "user"}
    texts = {one.text: one.reward for n in journal.finished for one in journal.group(n).rollouts}
    for row in rows:
        assert texts[row["chosen"][0]["content"]] == 1 and texts[row["rejected"][0]["content"]] == 0
        assert row["prompt"][-1]["content"][0] in "eh"


def written_run(folder: Path, groups: list[Group]) -> Path:
    """A folder as `herd rl` leaves it, with these groups in its journal."""
    folder.mkdir()
    journal, place = Journal(folder / "journal"), {"environment": "rl_world:Parity", "cell": "easy"}
    for number, one in enumerate(groups):
        journal.append(Admitted(ordinal=number, wave=0, index=number, seed=number, version=0, **place))
        journal.append(Finished(replace(one, ordinal=number, index=number, **place)))
    journal.close()
    facts = {"config": {"seed": 0, "system_prompts": []}, "parents": {"data": {"path": str(folder)}}}
    write_json(folder / "herd.json", facts)
    return folder


def test_the_command_writes_what_dpo_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [group(rollout(0, 0.0), rollout(1, float(number % 4 > 0))) for number in range(20)]
    run, out = written_run(tmp_path / "run", groups), tmp_path / "pairs.jsonl"
    assert main(["data", "pairs", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"left out 5 {SAME}\nwrote {out}: 15 pairs\n"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    said = {"role": "assistant", "content": "answer 1"}, {"role": "assistant", "content": "answer 0"}
    assert rows[0] == {"prompt": [{"role": "user", "content": "e 1"}], "chosen": [said[0]], "rejected": [said[1]]}
    written = read_pairs(DpoConfig(pairs=str(out)))
    assert len(written) == 15 and written == read_pairs(DpoConfig(run=str(run)))


def test_dpo_goes_on_from_a_run_of_rl(ran: tuple[Path, Path], tmp_path: Path) -> None:
    config = DpoConfig(run=str(ran[1]), max_steps=2, batch_pairs=2, dtype="float32", heldout=0.2)
    out = dpo(config, ran[1], tmp_path / "dpo")
    assert set(read_lineage(out)["parents"]) == {"model", "run"}
    with pytest.raises(HerdError, match="give one of them"):
        replace(config, pairs="pairs.jsonl")


def test_a_run_without_pairs_and_other_folders_are_refused(ran: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(HerdError, match="has no journal: give a finished folder of herd rl"):
        write_pairs(ran[0], tmp_path / "pairs.jsonl")
    talked = written_run(tmp_path / "talked", [group(rollout(0, 1.0), rollout(1, 0.0, heard=1))])
    with pytest.raises(HerdError, match=r"has no pair \(1 groups of several turns\)"):
        write_pairs(talked, tmp_path / "pairs.jsonl")
    assert not (tmp_path / "pairs.jsonl").exists()
