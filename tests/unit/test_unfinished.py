"""herd.stages.unfinished: a training that was stopped is resumed, refused or moved aside, and never deleted."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_cache import fresh_cache

from herd.cli import main
from herd.commands import COMMANDS
from herd.commands.single import stage_command
from herd.commands.stages import stage
from herd.config import MoEConfig, OptimizerConfig, PretrainConfig, SpecialIds, preset
from herd.core.batch import Batch, split_batch
from herd.core.lineage import Stage
from herd.core.tracker import Tracker, read_metrics
from herd.errors import HerdError
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.stages.unfinished import changes, request
from herd.train.checkpoint import candidates
from herd.train.loop import train
from herd.train.losses import language_loss

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5)
Command = Callable[..., int]


class Batches:
    """Two random documents, a function of the step."""

    unit = "tokens"

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def batch(self, step: int) -> Batch:
        tokens = torch.randint(10, 64, (32,), generator=torch.Generator().manual_seed(step))
        return Batch(
            tokens_N=tokens,
            targets_N=tokens.roll(-1),
            weights_N=torch.ones(32),
            positions_N=torch.arange(32) % 16,
            starts_S=torch.tensor([0, 16, 32], dtype=torch.int32),
            images=None,
            kinds_N=torch.zeros(32, dtype=torch.int8),
        )


def pretrain_small(config: PretrainConfig, model: Path, data: Path, out: Path) -> Path:
    """`herd pretrain` of a very small model."""
    shape = dataclasses.replace(preset("tiny", vocab_size=64, special=SPECIAL), dim=32, num_layers=2, head_dim=8)
    shape = dataclasses.replace(shape, vision=None, moe=MoEConfig(num_experts=2, ffn_dim=32))
    network = Transformer(shape).to(torch.bfloat16)
    initialise(network, torch.Generator().manual_seed(0))
    if config.batch_tokens > config.num_tokens:
        raise HerdError("no whole step")
    network.recompute = config.recompute
    stage = Stage("pretrain", out, config=config, parents={"model": model, "data": data})
    batches = Batches(config.num_tokens // config.batch_tokens)
    train(network, batches, language_loss(0.0), config, stage, split=partial(split_batch, count=config.micro_batches))
    torch.save(network.state_dict(), stage.work / "weights")
    return stage.finish()


@pytest.fixture
def pretrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """`herd pretrain … --out out`, with more options; `stop_at` presses Ctrl-C after that step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERD_CACHE", str(fresh_cache(tmp_path / "cache")))
    small = stage(
        "pretrain", config="herd.config:PretrainConfig", function="test_unfinished:pretrain_small",
        reads=("model", "data"), writes="model",
    )  # fmt: skip
    monkeypatch.setitem(COMMANDS, "pretrain", stage_command(small))
    for name in ("m", "d", "other"):
        Path(name).mkdir()
        (Path(name) / "herd.json").write_text(json.dumps({"hash": f"hash of {name}"}))
    settings = "num_tokens = 600\nbatch_tokens = 100\ncheckpoint.every_s = 1e9\n"
    Path("own.toml").write_text(f"[data]\n[model]\n[pretrain]\n{settings}")
    log, threads = Tracker.log, torch.get_num_threads()
    torch.set_num_threads(1)  # its matrices are too small for two

    def command(
        options: str = "",
        *,
        stop_at: int = -1,
        presses: int = 1,
        model: str = "m",
        data: str = "d",
        out: str = "out",
    ) -> int:
        def stopping(self: Tracker, step: int, **metrics: Any) -> None:
            log(self, step, **metrics)
            for _ in range(presses if step == stop_at else 0):
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Tracker, "log", stopping)
        return main(f"pretrain {model} --data {data} --out {out} --recipe own.toml {options}".split())

    yield command
    torch.set_num_threads(threads)


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the last command that failed."""
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("herd: ")]
    return line


def saved(work: str = "out.partial") -> list[str]:
    return [path.name for path in candidates(Path(work) / "state")]


def lineage(folder: str = "out") -> dict[str, Any]:
    reported: dict[str, Any] = json.loads((Path(folder) / "herd.json").read_text())
    return reported


def steps(folder: str = "out") -> list[int]:
    return [line["step"] for line in read_metrics(Path(folder) / "metrics.jsonl")]


def test_ctrl_c_saves_and_the_same_command_resumes(pretrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(stop_at=2) == 130
    reported = "herd: stopped as asked, the 3 steps of 6 before are saved: re-run the same command to resume"
    assert errors(capsys) == reported
    assert saved() == ["step-3"]
    assert not Path("out.log").exists()  # to stop is no error
    before = read_metrics(Path("out.partial/metrics.jsonl"))
    assert pretrain() == 0
    after = read_metrics(Path("out/metrics.jsonl"))
    assert after[:3] == before  # with their times: they were not made again
    assert steps() == list(range(6))
    assert "changes" not in lineage()


def test_a_second_ctrl_c_leaves_at_once_and_prints_what_is_kept(
    pretrain: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.core.signals.ECHO_S", -1.0)
    for kept, reported in (
        (0, "nothing was saved yet: the same command starts over"),
        (3, "the first 3 steps are saved in out.partial: re-run the same command to resume"),
    ):
        if kept:
            assert pretrain(stop_at=kept - 1) == 130
            capsys.readouterr()
        assert pretrain(stop_at=kept + 1, presses=2) == 130
        assert errors(capsys) == f"herd: stopped; {reported}"
    assert saved() == ["step-3"]


def test_a_changed_setting_is_refused_by_name_and_resumes_where_asked(
    pretrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(stop_at=2) == 130
    errors(capsys)
    changed = "--optimizer.matrix-lr 0.005 --num-tokens 800"
    assert pretrain(changed) == 1
    said = errors(capsys)
    assert "optimizer.matrix_lr 0.02 → 0.005, num_tokens 600 → 800. " in said
    assert "--resume-with-changes to resume from step 3" in said and "--restart" in said
    assert saved() == ["step-3"]
    assert not Path("out.log").exists()
    assert pretrain(f"{changed} --resume-with-changes", stop_at=4) == 130
    assert pretrain(f"{changed} --seed 1 --resume-with-changes") == 0
    assert lineage()["changes"] == [
        {
            "step": 3,
            "fields": {
                "num_tokens": {"before": 600, "after": 800},
                "optimizer.matrix_lr": {"before": 0.02, "after": 0.005},
            },
        },
        {"step": 5, "fields": {"seed": {"before": 0, "after": 1}}},
    ]
    assert lineage()["config"]["optimizer"]["matrix_lr"] == 0.005
    assert steps() == list(range(8))
    assert [line["lr_factor"] for line in read_metrics(Path("out/metrics.jsonl"))][3:] == [1, 1, 0.75, 0.5, 0.25]
    assert sorted(path.name for path in Path("out").glob(".*")) == []


def test_settings_that_do_not_change_the_result_just_resume(pretrain: Command) -> None:
    assert pretrain(stop_at=2) == 130
    before = read_metrics(Path("out.partial/metrics.jsonl"))
    assert pretrain("--checkpoint.keep 3 --checkpoint.every-s 5 --recompute --micro-batches 2") == 0
    assert read_metrics(Path("out/metrics.jsonl"))[:3] == before
    assert steps() == list(range(6))
    assert lineage()["config"]["checkpoint"]["keep"] == 3
    assert "changes" not in lineage()


def test_restart_moves_the_old_work_aside_where_it_can_be_gone_on_with(
    pretrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(stop_at=2) == 130
    for number in (1, 2):
        capsys.readouterr()
        assert pretrain("--seed 9 --restart", stop_at=0) == 130
        assert f"out.partial is now out.{number}.partial" in capsys.readouterr().out
    assert (saved("out.1.partial"), saved("out.2.partial"), saved()) == (["step-3"], ["step-1"], ["step-1"])
    assert pretrain(out="out.1") == 0
    assert steps("out.1") == list(range(6))


def test_other_data_is_refused_and_another_model_always(pretrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(stop_at=2) == 130
    errors(capsys)
    assert pretrain(data="other") == 1
    assert 'data "hash of d" → "hash of other". ' in errors(capsys)
    assert pretrain("--resume-with-changes", model="other") == 1
    assert "began from another model" in errors(capsys)
    assert saved() == ["step-3"]
    assert pretrain("--resume-with-changes", data="other") == 0
    change = {"before": "hash of d", "after": "hash of other"}
    assert lineage()["changes"] == [{"step": 3, "fields": {"data": change}}]


def test_a_stored_config_with_old_names_is_compared_by_the_names_of_today() -> None:
    config = PretrainConfig(bias_update_rate=0.1, optimizer=OptimizerConfig(warmup_ratio=0.1))
    wanted = request(config, {})
    stored = json.loads(json.dumps(wanted))
    for values, name, old in (
        (stored["config"], "bias_update_rate", "balance_rate"),
        (stored["config"], "loss_spikes", "guard"),
        (stored["config"]["optimizer"], "warmup_ratio", "warmup"),
    ):
        values[old] = values.pop(name)
    assert changes(stored, wanted, config) == {}
    stored["config"]["optimizer"]["warmup"] = 0.2
    stored["config"]["guard"]["sigmas"] = 9.0
    assert changes(stored, wanted, config) == {
        "optimizer.warmup_ratio": (0.2, 0.1),
        "loss_spikes.sigmas": (9.0, config.loss_spikes.sigmas),
    }


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ("--num-tokens 200", "3 steps are saved, more than the 2 asked for"),
        ("--optimizer.matrix adamw", "does not fit what is trained now"),
        ("--optimizer.moments 8bit", "does not fit what is trained now"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_the_old_settings_still_resume(
    pretrain: Command, capsys: pytest.CaptureFixture[str], change: str, reported: str
) -> None:
    assert pretrain(stop_at=2) == 130
    errors(capsys)
    assert pretrain(f"{change} --resume-with-changes") == 1
    assert reported in errors(capsys)
    assert saved() == ["step-3"]
    assert pretrain(stop_at=4) == 130
    assert saved()[0] == "step-5"


def test_a_mistake_before_the_first_checkpoint_is_fixed_by_another_setting(
    pretrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain("--batch-tokens 900") == 1
    assert not Path("out.log").exists()
    assert not Path("out.partial").exists()  # nothing was done in it
    assert pretrain("--batch-tokens 300") == 0


def test_work_that_does_not_say_what_it_is_stays(pretrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.partial").mkdir()
    Path("out.partial/notes.txt").write_text("a user's")
    assert pretrain() == 1
    assert "out.partial does not record its settings" in errors(capsys)
    assert pretrain("--restart", stop_at=0) == 130
    assert Path("out.1.partial/notes.txt").read_text() == "a user's"


def test_a_parent_that_is_not_there_leaves_no_work_behind(
    pretrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(model="nowhere") == 1
    assert errors(capsys).startswith("herd: nowhere is not there")
    assert not Path("out.partial").exists()


def test_two_ways_at_once_are_refused(pretrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain("--restart --resume-with-changes") == 1
    assert "give one of them" in errors(capsys)


def test_work_killed_between_its_lineage_and_its_name_is_finished_and_not_made_again(
    pretrain: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for SIGKILL."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("herd.core.lineage.shutil.rmtree", killed)
        with pytest.raises(Killed):
            pretrain()
    assert not Path("out").exists()
    assert pretrain(stop_at=0) == 0  # no step is made
    assert steps() == list(range(6))
    assert sorted(path.name for path in Path("out").iterdir()) == ["herd.json", "metrics.jsonl", "weights"]
