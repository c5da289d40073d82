"""`herd bench rl`: the dial, published runs, clusters and the roofline of decoding."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from herd.bench import rl_cluster, rl_published
from herd.bench.rl import LAGS, Service, bench_rl
from herd.bench.rl_model import Machine, Workload, inflight, pinned, strong
from herd.bench.rl_sim import calibrate, simulate
from herd.cli import main
from herd.config import preset
from herd.errors import HerdError
from herd.plan.cluster import GPUS
from herd.plan.counts import weight_bytes
from herd.plan.decode import decoder, published_decoding, smallest_replica, table


def test_a_calibrated_engine_draws_its_groups_in_the_time_that_was_measured() -> None:
    workload = Workload(group_size=3, mean_tokens=20, token_sigma=0.6)
    for slots in (2, 8, 100):
        bare = Machine(fixed_s=0.0, token_s=0.0, train_s=0.25, prefill_s=0.01, slots=slots)
        machine = calibrate(bare, map(workload, range(6)), draw_s=3.0, fixed_share=0.3)
        run = simulate(strong(6), machine, workload, steps=1, warm_up=0)
        assert run.seconds_per_step == pytest.approx(3.25)
    assert calibrate(bare, map(workload, range(6)), draw_s=3.0, fixed_share=0.0).fixed_s == 0.0


def test_the_dial_holds_the_targets_at_waiting_environments_and_loses_nothing_at_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench_rl(
        cases=["simulated"], latencies=[0.0, 0.1, 1.0], lags=LAGS, service=Service(), steps=30, seeds=2, out=None,
        as_json=True,
    )  # fmt: skip
    rows = {
        (row["case"].removeprefix("simulated, latency "), row["peer_name"]): row
        for row in json.loads(capsys.readouterr().out)["rows"]
    }
    for latency in ("0.1 s", "1 s"):
        assert rows[f"{latency}: in flight, lag 4", "naive"]["ratio"] > 10
        assert rows[f"{latency}: in flight, lag 4", "strong synchronous"]["ratio"] > 2.5
        assert rows[f"{latency}: pinned, lag 1", "strong synchronous"]["ratio"] <= 2
    for lag in LAGS:
        assert rows[f"0 s: in flight, lag {lag}", "strong synchronous"]["ratio"] >= 1
    assert rows["0 s: pinned, lag 0 on halved cores", "strong synchronous"]["ratio"] < 0.7


def test_the_control_of_the_dial_is_printed_with_one_group_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rl", "--latencies", "0.3", "--steps", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in next(line for line in lines if line.startswith("| naive")).split("|")]
    names = [cell.strip() for cell in next(line for line in lines if line.startswith("| schedule")).split("|")]
    assert cells[names.index("groups under way")] == "1.00"


def test_service_times_that_are_none_are_refused() -> None:
    with pytest.raises(HerdError, match=r"draw_s=0.*more than 0"):
        Service(draw_s=0)
    with pytest.raises(HerdError, match=r"keep=1\.5"):
        Service(keep=1.5)


def test_published_runs_are_whole_and_their_control_is_met_by_its_own_stages() -> None:
    runs = rl_published.published_runs()
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        assert run.published_s < run.sync_s and run.own_train_s < run.published_s * 1.1
        assert run.draw_s + run.train_s < 2 * run.sync_s  # on half of its cards at least
        assert run.schedule.capacity == int((run.schedule.lag + 1) * run.groups)


def test_of_published_runs_a_step_takes_at_least_the_trainers_time_and_vimes_is_within_its_bar() -> None:
    run = next(run for run in rl_published.published_runs() if run.name.startswith("vime"))
    from_control, own = (rl_published.predict(run, own=own) for own in (False, True))
    assert 0.999 * run.train_s <= from_control.least <= from_control.seconds <= from_control.most
    assert own.least >= 0.999 * run.own_train_s
    assert abs(own.error(run)) < rl_published.WITHIN < abs(from_control.error(run))
    [*_, line] = rl_published.table([(run, from_control, own)])
    assert "| 178.3 | 104.0 | 81.4 |" in line and "**" in line


def test_a_decoding_step_reads_the_weights_once_and_is_held_beside_published_throughputs() -> None:
    config, card = preset("scout"), GPUS["h100"]
    one, two = (decoder(config, card, gpus=gpus, context=1024) for gpus in (4, 8))
    assert one.fixed_s == pytest.approx(2 * two.fixed_s)
    assert one.sequence_s == pytest.approx(2 * two.sequence_s)
    assert two.max_sequences > 2 * one.max_sequences  # the weights are there once
    ratios = [predicted / published for _, published, predicted in published_decoding()]
    assert ratios[0] == pytest.approx(1, abs=0.03)
    assert max(max(ratio, 1 / ratio) for ratio in ratios) < 2.3
    page = (Path(__file__).parents[2] / "docs/plan.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in page, "the lines of herd.plan.decode.table()"
    with pytest.raises(HerdError, match="take more"):
        decoder(preset("behemoth"), card, gpus=8, context=1024)
    gpus = smallest_replica(preset("behemoth"), card)
    assert weight_bytes(preset("behemoth"), "int8") < 0.7 * gpus * card.memory
    assert gpus == 64


def test_a_cluster_estimate_has_training_no_faster_than_its_slowest_part() -> None:
    run = rl_cluster.RlRun(groups=96, group_size=4, tokens=512, max_tokens=1024)
    found = rl_cluster.estimate(replace(run, prompt=512), 2048)
    assert found.trainers in (512, 1024, 1536)
    assert next(iter(found.seconds)) == "sync" and len(found.seconds) == 1 + 2 * len(rl_cluster.LAGS)
    for name, seconds in found.seconds.items():
        if name != "sync":
            assert seconds >= 0.999 * found.train_s
    assert found.seconds["in flight 8"] <= found.seconds["in flight 1"]
    lines = rl_cluster.table([found])
    assert len(lines) == 3 and lines[2].startswith(f"| 2,048 | {found.trainers:,} : {2048 - found.trainers:,} |")
    assert run.text.startswith("behemoth on h100: steps of 96 prompts x 4 answers")


def test_where_a_split_does_not_fit_there_is_the_synchronous_run_alone() -> None:
    found = rl_cluster.estimate(rl_cluster.RlRun(groups=96, group_size=4), 512)
    assert list(found.seconds) == ["sync"]


def test_the_longest_answer_holds_back_what_is_pinned_and_not_what_is_in_flight() -> None:
    """Weights that wait for a whole wave to be drawn cannot hide its longest answer, whatever the lag."""
    machine = Machine(fixed_s=0.01, token_s=0.0, train_s=0.1)
    workload = Workload(group_size=4, mean_tokens=100, token_sigma=1.0, max_tokens=1000)
    slow, fast = (
        simulate(schedule, machine, workload, steps=40).seconds_per_step for schedule in (pinned(8, 8), inflight(8, 8))
    )
    assert fast < slow / 3
    assert slow == pytest.approx(simulate(pinned(8, 1), machine, workload, steps=40).seconds_per_step, rel=0.1)
