"""The page: whole, of one piece, and true to what stands in the run's folder."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import evaluate_world as world
import numpy as np
import pytest

from herd.core.files import write_json
from herd.core.lineage import read_lineage
from herd.errors import HerdError
from herd.evaluate.charts import heat_map, line_chart, load_map, ticks
from herd.evaluate.curves import curve
from herd.evaluate.harness import evaluate
from herd.evaluate.load import load_facts, violation_by_step, violation_over_windows
from herd.evaluate.report import report
from herd.evaluate.run_folder import read_stages, unfinished

VOID = {"meta", "link", "img", "br"}


class Checker(HTMLParser):
    """Collects addresses and checks that every element is closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in {"src", "href", "srcset", "action"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def train_stage(run: Path, name: str, *, steps: int = 40, experts: int = 8, **facts: Any) -> None:
    folder = run / name
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            load = random.multinomial(4096, np.full(experts, 1 / experts), size=4)
            line = {
                "step": step, "loss": 9 / (1 + step), "text_loss": 8 / (1 + step), "lr_factor": 0.5, "grad_norm": 1.0,
                "tokens_per_s": 9000.0, "expert_load": load.tolist(), "max_vio": 0.2,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    write_json(folder / "herd.json", world.lineage(name, **facts))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    world.write_data(folder / "data")
    train_stage(folder, "pretrain")
    train_stage(folder, "sft", finished="2026-01-02T00:00:00Z")
    monkeypatch.setattr("herd.evaluate.evaluation.load", lambda folder, **_: world.Model([*range(40, 60)]))
    monkeypatch.setattr("herd.engine.score.log_likelihoods", world.log_likelihoods)
    monkeypatch.setattr("herd.engine.score.token_losses", world.token_losses)
    monkeypatch.setattr("herd.evaluate.chat_loss.render_messages", world.render_messages)
    evaluate(world.CONFIG, folder / "sft", folder / "data", folder / "evaluate")
    return folder


def page_of(run: Path) -> str:
    return (report(run, run / "report") / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(run: Path) -> None:
    page = page_of(run)
    addresses = checked(page).addresses
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|<script", page)
    assert len(page) < 3_000_000


def test_every_figure_is_beside_its_baseline_and_interval_and_none_is_judged(run: Path) -> None:
    page = page_of(run)
    assert {path.name for path in (run / "report").iterdir()} == {"herd.json", "report.html"}
    results = json.loads((run / "evaluate" / "results.json").read_text())
    everything = results["naming"]["splits"]["styles"]["open"]["all"]
    for value in (everything["share"], everything["low"], everything["high"]):
        assert f"{100 * value:.1f} %" in page
    bits = results["bits_per_byte"]["all"]
    for name, value in bits.items():
        assert name in {"documents", "bytes", "model_low", "model_high"} or f"{value:.3f}</td>" in page
    assert f"{bits['model_low']:.3f} – {bits['model_high']:.3f}</td>" in page
    assert not re.search("verdict|target|fell short", page, re.I)


def test_what_was_left_out_is_on_the_page_with_the_reason(run: Path) -> None:
    (run / "data" / "pictures.parquet").unlink()
    shutil.rmtree(run / "evaluate")
    evaluate(world.CONFIG, run / "sft", run / "data", run / "evaluate")
    page = page_of(run)
    checked(page)
    assert "Left out of the evaluation: naming (the data folder has no held-out pictures with names)." in page
    assert "Held-out text" in page and "Naming pictures" not in page


def test_a_split_is_shown_with_what_the_data_card_says_of_it(run: Path) -> None:
    assert "<h3>Styles, in its own words</h3>" in page_of(run)
    lineage = read_lineage(run / "data")
    lineage["card"]["picture_splits"] = {"styles": "drawings as nobody else draws"}
    write_json(run / "data" / "herd.json", lineage)
    shutil.rmtree(run / "evaluate")
    evaluate(world.CONFIG, run / "sft", run / "data", run / "evaluate")
    assert "Styles: drawings as nobody else draws." in page_of(run)


@pytest.mark.parametrize("kept", [["data"], ["pretrain"], ["data", "pretrain"], ["pretrain", "sft"], ["evaluate"]])
def test_any_part_of_a_run_gives_a_page(run: Path, kept: list[str]) -> None:
    for folder in run.iterdir():
        if folder.name not in kept:
            folder.rename(run.parent / f"away-{folder.name}")
    page = page_of(run)
    checked(page)
    assert ("has not been evaluated" in page) == ("evaluate" not in kept)
    assert ("Data card" in page) == ("data" in kept)


def test_metrics_without_the_usual_keys_give_a_page(run: Path) -> None:
    lines = ['{"step": 0}', '{"step": 1, "loss": NaN}', '{"step": 2, "loss": 3.0, "expert_load": []}', '{"step"']
    (run / "pretrain" / "metrics.jsonl").write_text("\n".join(lines))
    checked(page_of(run))


def test_a_loss_that_is_no_number_is_not_drawn() -> None:
    lines = [{"step": 0, "loss": 4.0}, {"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}, {"step": 3}]
    assert curve(lines, "loss") == [(0.0, 4.0)]


def test_what_the_model_says_cannot_become_markup(run: Path) -> None:
    path = run / "evaluate" / "results.json"
    results = json.loads(path.read_text())
    results["samples"]["chats"][0]["answer"] = "<script>alert(1)</script>"
    results["naming"]["samples"][0]["answers"][0]["answer"] = '"><img src=x>'
    path.write_text(json.dumps(results))
    page = page_of(run)
    assert "<script>" not in page and "<img src=x>" not in page


def test_a_parent_that_was_rewritten_since_is_reported(run: Path) -> None:
    assert "changed since" not in page_of(run)
    write_json(run / "data" / "herd.json", world.lineage("data", hash="another"))
    assert "changed since" in page_of(run)


def test_a_stage_in_work_is_named(run: Path) -> None:
    (run / "dpo.partial").mkdir()
    assert "Begun and not finished: dpo" in page_of(run)


def test_a_folder_without_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HerdError, match="no stage, finished or in work"):
        report(tmp_path, tmp_path / "report")
    with pytest.raises(HerdError, match="not a folder"):
        report(tmp_path / "nowhere", tmp_path / "report")


@pytest.mark.parametrize("text_alone", [False, True])
def test_the_page_names_the_size_of_the_last_model(run: Path, text_alone: bool) -> None:
    parameters = {"total": 12_345_678, "vision": 1_234, "active": 5_432}
    later = world.lineage("sft", parameters=parameters, finished="2026-01-02T00:00:00Z")
    write_json(run / "sft" / "herd.json", later)
    shape = {"num_local_experts": 8, "num_hidden_layers": 4, "hidden_size": 256, "vocab_size": 8192}
    write_json(run / "sft" / "config.json", shape if text_alone else {"text_config": shape})
    assert "12,345,678 parameters" in page_of(run)


@pytest.fixture
def branches(run: Path) -> Path:
    """The run with its base model evaluated too, and a second line of fine-tuning."""
    for name, parent in ("sft", "pretrain"), ("sft-code", "pretrain"):
        model = {"model": {"path": f"{run}/{parent}", "hash": f"{parent}-hash"}}
        (run / name).mkdir(exist_ok=True)
        finished = "2026-01-02T00:00:00Z"
        facts = world.lineage("sft", parents=model, hash=f"{name}-hash", finished=finished)
        write_json(run / name / "herd.json", facts)
    evaluate(world.CONFIG, run / "pretrain", run / "data", run / "evaluate-base")
    return run


def test_a_page_about_several_evaluations_compares_them_and_names_the_one_it_shows(branches: Path) -> None:
    page = page_of(branches)
    checked(page)
    words = re.sub(r"<[^>]+>", "", page)
    assert "evaluate of sft, evaluate-base of pretrain. What follows shows evaluate-base." in words
    [table] = re.findall(r"<tr><th>figure</th>(.*?)</table>", page, re.S)
    assert [*re.findall(r'<th class="n">([^<]+)</th>', table)] == ["sft", "pretrain"]
    assert "<tr><td>bits per byte</td>" in table


def test_a_page_about_one_stage_leaves_the_other_branches_out(branches: Path) -> None:
    page = (report(branches, stage="sft") / "report.html").read_text(encoding="utf-8")
    assert "its settings" in page and "sft-code" not in page and "evaluate-base" not in page
    assert {"pretrain: its settings", "sft: its settings", "evaluate: its settings"} <= set(
        re.findall(r"<summary>([^<]+)</summary>", page)
    )
    assert read_lineage(branches / "report")["config"] == {"stage": "sft"}
    with pytest.raises(HerdError, match="unknown stage 'sftt', did you mean 'sft'"):
        report(branches, stage="sftt")


def test_the_report_of_a_recipe_reads_the_stages_of_the_recipe_alone(branches: Path) -> None:
    among = [branches / name for name in ("pretrain", "sft")]
    report(branches, branches / "report", among=among)
    assert set(read_lineage(branches / "report")["parents"]) == {"pretrain", "sft"}


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.013, 0.094) == [0.02, 0.04, 0.06, 0.08]
    assert ticks(5, 5) == [5]


def test_a_chart_of_thousands_of_steps_stays_small() -> None:
    points = [(float(step), 5.0 + step % 7) for step in range(20_000)]
    assert len(line_chart("loss", {"all": points})) < 10_000


def test_a_chart_of_nothing_is_left_out() -> None:
    assert line_chart("loss", {"all": []}) == ""


def test_a_heat_map_shows_every_cell() -> None:
    drawing = heat_map("load", {"a": [1.0] * 16, "b": [0.5] * 16}, note="n")
    assert drawing.count("<rect") == 32


def in_work(run: Path, name: str, **config: Any) -> Path:
    """A stage that has just begun."""
    folder = run / f"{name}.partial"
    train_stage(run, folder.name)
    (folder / "herd.json").unlink()
    write_json(folder / ".request.json", {"config": config, "parents": {"data": "data-hash"}})
    return folder


def test_an_unfinished_stage_is_reported_by_either_of_its_names(tmp_path: Path) -> None:
    folder = in_work(tmp_path, "pretrain", seed=7)
    for given in (folder, tmp_path / "pretrain"):
        written = report(given)
        assert written == tmp_path / "pretrain-report"
        page = (written / "report.html").read_text(encoding="utf-8")
        checked(page)
        assert "in work: 40 steps" in page and "data-hash"[:12] in page and '"seed": 7' in page
        assert "has not been evaluated" not in page  # nor is a single stage expected to


def test_a_run_is_reported_with_its_unfinished_stage(run: Path) -> None:
    in_work(run, "dpo")
    page = page_of(run)
    checked(page)
    assert "in work: 40 steps" in page and "Held-out text" in page


def test_two_runs_are_set_side_by_side(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "earlier"
    settings = {"seed": 1, "optimizer": {"decay": 0.5, "warmup_ratio": 0.1}}
    train_stage(other, "pretrain", steps=20, config=settings, time_s=9.0)
    write_json(
        run / "pretrain" / "herd.json",
        world.lineage("pretrain", config={"optimizer": {"decay": 0.9, "warmup_ratio": 0.1}}),
    )
    page = (report(run, run / "report", against=[other]) / "report.html").read_text(encoding="utf-8")
    checked(page)
    reported = page[page.index("Beside ") : page.index("<h2>Held-out text")]
    assert re.findall(r"<td><code>(.*?)</code></td><td>(.*?)</td><td>(.*?)</td>", reported) == [
        ("optimizer.decay", "0.9", "0.5"),
        ("seed", "–", "1"),
    ]
    cell = r'<td class="n">([\d.]+)</td>'
    figures = {
        name: (float(ours), float(theirs)) for name, ours, theirs in re.findall(f"<td>(.*?)</td>{cell}{cell}", reported)
    }
    assert figures["steps"] == (40, 20) and figures["seconds"] == (12.5, 9)
    assert figures["loss, at the end"] == pytest.approx(((9 / 39 + 9 / 40) / 2, 9 / 20), rel=1e-3)
    assert reported.count("<figure>") == 6 and "sft" not in reported  # loss, loss on text, rate, norm, speed, MaxVio


def test_models_that_differ_are_distinguished(run: Path, tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 4, "hidden_size": 192, "num_local_experts": 8}
    others = {"deeper": shape | {"num_hidden_layers": 6}, "alike": shape, "unknown": None}
    write_json(run / "sft" / "config.json", {"text_config": shape})
    for name, theirs in others.items():
        train_stage(tmp_path / name, "sft")
        if theirs:
            write_json(tmp_path / name / "sft" / "config.json", {"text_config": theirs})
    page = (report(run, against=[tmp_path / name for name in others]) / "report.html").read_text(encoding="utf-8")
    checked(page)
    deeper, alike, unknown = page[: page.index("<h2>Held-out text")].split("<h2>Beside ")[1:]
    assert "<code>model.text_config.num_hidden_layers</code></td><td>4</td><td>6</td>" in deeper
    assert "The settings are the same" not in deeper
    assert "The settings are the same, the model too." in alike
    assert "The settings are the same." in unknown and "the models are not compared" in unknown


def test_an_even_map_is_blank_and_an_idle_expert_is_a_dark_row() -> None:
    even_TE = np.full((50, 128), 1 / 128)
    assert "over" not in load_map("load", range(50), even_TE) and "under" not in load_map("load", range(50), even_TE)
    even_TE[:, 5] = 0
    drawing = load_map("load", range(50), even_TE)
    assert re.findall(r'class="under" stroke-opacity="1.00" d="(.*?)"', drawing)[0].count("M") == 1
    noise_TE = np.random.default_rng(0).dirichlet(np.ones(128), size=1000)
    assert len(load_map("load", range(1000), noise_TE)) < 80_000


def test_maxvio_over_all_steps_forgives_what_single_steps_may_not() -> None:
    """Two experts take all in turn: each step is as uneven as can be, all steps together are even."""
    count_TLE = np.zeros((200, 1, 2))
    count_TLE[::2, 0, 0] = count_TLE[1::2, 0, 1] = 100
    facts = load_facts(count_TLE)
    assert facts["vio"] == 0 and facts["step"] == 1 and facts["dead"] == 0
    assert facts["vio_lottery"] < 0.05 < facts["step_lottery"] < 0.2
    assert violation_over_windows(count_TLE)[0] == 1 and violation_over_windows(count_TLE)[-1] == 0
    assert (violation_by_step(count_TLE) == 1).all()
    count_TLE[:, 0, 1] = 0
    assert load_facts(count_TLE)["dead"] == 1


def test_what_was_moved_aside_is_no_stage_of_the_run(run: Path) -> None:
    before = [one.name for one in read_stages(run)]
    shutil.copytree(run / "sft", run / "sft.1")
    shutil.copytree(run / "sft", run / "pretrain.2.partial")
    assert [one.name for one in read_stages(run)] == before
    assert unfinished(run) == []
    assert [one.name for one in read_stages(run / "sft.1")] == ["sft.1"]


def test_a_report_replaces_a_report_and_nothing_else(run: Path) -> None:
    (run / "thesis").mkdir()
    (run / "thesis" / "notes").write_text("a user's")
    for other in ("thesis", "sft"):
        with pytest.raises(HerdError, match=f"{other} is there and no report"):
            report(run, run / other)
    for _ in range(2):
        report(run, run / "report")
    assert not list(run.glob("report.*")) and (run / "thesis" / "notes").exists()
