"""herd guard balance: pairs from files and generated, resuming, the figures and the claims, bad input."""

import json
from pathlib import Path

import pytest
from test_guard_judges import Script

from herd.cli import main
from herd.core.files import read_json
from herd.errors import HerdError
from herd.evaluate.report import report
from herd.guard import balance as module
from herd.guard.balance import BalanceConfig, balance
from herd.guard.even_handed import hedges
from herd.guard.pairs import generate_pairs, read_labels, read_pairs
from herd.guard.target import Answer, AskConfig

ASKING = AskConfig()


def answer_to(prompt: str) -> str:
    return f"Here is what was asked for. {prompt} It has a long history, and people in many towns know it well."


def against_is_refused(prompt: str) -> Answer | str:
    return "I'm sorry, but I can't help with that." if "against" in prompt.lower() else answer_to(prompt)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    rows = [f"topic {i % 2},Argue for policy number {i}.,Argue against policy number {i}." for i in range(30)]
    path = tmp_path / "pairs.csv"
    path.write_text("topic,a,b\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Script]:
    known: dict[str, Script] = {}

    def open_target(place: str, *_: object, **__: object) -> Script:
        known[str(place)].name = str(place)
        return known[str(place)]

    monkeypatch.setattr(module, "open_target", open_target)
    return known


def test_the_generated_pairs_are_mirrored_distinct_and_in_every_topic_from_the_start() -> None:
    pairs = generate_pairs()
    assert len(pairs) == 1350
    assert len({pair.a for pair in pairs} | {pair.b for pair in pairs}) == 2700
    assert {pair.topic for pair in pairs[:45]} == {pair.topic for pair in pairs}
    for pair in pairs:
        a, b = pair.a.split(), pair.b.split()
        assert abs(len(a) - len(b)) <= 2 and 0 < len(set(a) ^ set(b)) <= 7, pair


def test_columns_of_other_names_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "eval_set.csv"
    path.write_text('topic_name,prompt_a,prompt_b\nrent,"Argue, please, for it","Argue, please, against it"\n')
    assert read_pairs(path)[0].a == "Argue, please, for it"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"), ("topic,a,b\n", "no rows"), ("topic,left\nx,y\n", "needs topic, a and b"),
        ("topic,a,b\nx,,z\n", "pair 1"), ("topic,a,b\nx,y,y\n", "same prompt"), ("topic,a,b\nx,y\n", "pair 1"),
        ('topic,a,b\nx,"y,z\n', "no CSV file"),
    ],
)  # fmt: skip
def test_a_file_that_has_no_pairs_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(HerdError, match=said) as error:
        read_pairs(path)
    assert str(path) in str(error.value)


def test_labels_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    for text, said in (("prompt,reply\nx,y\n", "declined is missing"), ("prompt,reply,declined\nx,y,yes\n", "0 or 1")):
        path.write_text(text)
        with pytest.raises(HerdError, match=said):
            read_labels(path)


def test_two_models_are_compared_and_the_one_sided_one_is_found(
    csv: Path, scripts: dict[str, Script], tmp_path: Path
) -> None:
    scripts |= {"http://even": Script(answer_to), "http://one-sided": Script(against_is_refused)}
    cfg = BalanceConfig(models=tuple(scripts), pairs=str(csv))
    results = read_json(balance(cfg, tmp_path / "out", asking=ASKING) / "results.json")
    even, uneven = results["models"]
    assert even["declined"]["hits"] == 0 and not even["difference"]["uneven"] and even["unequal"]["hits"] == 0
    assert uneven["difference"]["value"] == 1 and uneven["difference"]["uneven"]
    assert uneven["unequal"]["hits"] == 30 and all(row["difference"]["uneven"] for row in uneven["topics"])
    assert uneven["difference"]["corrected"]["low"] > 0.8
    assert not even["claims"][0]["holds"], "30 pairs cannot show less than 2 %"
    assert "http://one-sided: uneven topics: topic 0, topic 1" in module.table(results)


def test_a_killed_run_asks_only_what_is_missing(
    csv: Path, scripts: dict[str, Script], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(prompt: str) -> str:
        if scripts["http://m"].asked > 40:
            raise KeyboardInterrupt
        return answer_to(prompt)

    cfg = BalanceConfig(models=("http://m",), pairs=str(csv))
    scripts["http://m"] = Script(stops)
    with pytest.raises(KeyboardInterrupt):
        balance(cfg, tmp_path / "out", asking=ASKING, at_once=1)
    journal = tmp_path / "out.partial" / module.JOURNAL
    kept = len(journal.read_text().splitlines())
    assert kept >= 30
    journal.write_bytes(journal.read_bytes() + b'{"key": "torn')
    scripts["http://m"] = again = Script(answer_to)
    resumed = read_json(balance(cfg, tmp_path / "out", asking=ASKING) / "results.json")
    assert again.asked == 60 - kept
    scripts["http://m"] = Script(answer_to)
    assert read_json(balance(cfg, tmp_path / "other", asking=ASKING) / "results.json") == resumed


def test_other_settings_ask_anew(csv: Path, scripts: dict[str, Script], tmp_path: Path) -> None:
    cfg = BalanceConfig(models=("http://m",), pairs=str(csv))
    scripts["http://m"] = Script(lambda prompt: Answer(failure="empty"))
    with pytest.raises(HerdError, match=r"none of its 60 answers could be judged: empty \(60\)"):
        balance(cfg, tmp_path / "out", asking=ASKING)
    scripts["http://m"] = again = Script(answer_to)
    balance(cfg, tmp_path / "out", asking=AskConfig(max_tokens=7))
    assert again.asked == 60


def test_what_did_not_get_through_is_asked_again_and_counts_against_a_claim(
    csv: Path, scripts: dict[str, Script], tmp_path: Path
) -> None:
    broken = Answer(failure="error status", detail="HTTP 500")
    scripts["http://m"] = Script(lambda prompt: broken if "number 29" in prompt else answer_to(prompt))
    cfg = BalanceConfig(models=("http://m",), pairs=str(csv))
    (row,) = read_json(balance(cfg, tmp_path / "out", asking=ASKING) / "results.json")["models"]
    assert (row["judged"], row["pairs"], row["claims"][1]["hits"]) == (29, 30, 1)
    assert row["declined"]["unclear"] == {"error status": 2}
    assert len((tmp_path / "out" / module.JOURNAL).read_text().splitlines()) == 58


def test_a_model_judges_and_is_measured_on_labels(csv: Path, scripts: dict[str, Script], tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("prompt,reply,declined\n" + "x,no thanks,1\nx,all of it,0\n" * 20)
    scripts["http://m"] = Script(lambda prompt: "no thanks" if "against" in prompt else "all of it")
    scripts["http://judge"] = Script(lambda question: "REFUSAL" if "no thanks" in question else "ANSWER")
    cfg = BalanceConfig(models=("http://m",), pairs=str(csv), judge="http://judge", labels=str(labels))
    results = read_json(balance(cfg, tmp_path / "out", asking=ASKING) / "results.json")
    assert results["judge"]["name"] == "http://judge" and results["judge"]["errors"]["accuracy"] == 1
    assert results["models"][0]["difference"]["value"] == 1


def test_length_and_hedging_are_compared_where_both_sides_are_answered(
    csv: Path, scripts: dict[str, Script], tmp_path: Path
) -> None:
    hedged = " However, critics say that it might be otherwise."
    scripts["http://m"] = Script(lambda prompt: answer_to(prompt) + (hedged if "against" in prompt else ""))
    cfg = BalanceConfig(models=("http://m",), pairs=str(csv))
    (row,) = read_json(balance(cfg, tmp_path / "out", asking=ASKING) / "results.json")["models"]
    assert row["length"]["difference"] == 8 and row["length"]["low"] == row["length"]["high"] == 8
    assert row["hedging"]["low"] > 0 == row["hedging"]["a"]
    assert hedges("However, critics say so.") == 50


def test_the_report_has_a_section_on_balance(csv: Path, scripts: dict[str, Script], tmp_path: Path) -> None:
    scripts |= {"http://even": Script(answer_to), "http://one-sided": Script(against_is_refused)}
    balance(BalanceConfig(models=tuple(scripts), pairs=str(csv)), tmp_path / "run" / "balance", asking=ASKING)
    page = (report(tmp_path / "run") / "report.html").read_text()
    assert "Refusals and even-handedness" in page and "http://one-sided" in page
    assert "at most" in page or "are needed" in page


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"models": ()}, {"models": ("m", "m")}, {"num_pairs": -1}, {"max_declined": 0.0}):
        with pytest.raises(HerdError):
            BalanceConfig(**({"models": ("m",)} | wrong))


def test_the_command_prints_a_table_or_json(
    csv: Path, scripts: dict[str, Script], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts |= {"http://a": Script(answer_to), "http://b": Script(against_is_refused)}
    words = ["guard", "balance", "http://a", "http://b", "--pairs", str(csv), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("model") and said[-1] == f"wrote {tmp_path / 'out'}"
    assert main([*words[:-1], str(tmp_path / "more"), "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["models"]] == ["http://a", "http://b"]
    assert main([*words[:2], str(tmp_path / "none"), *words[4:-1], str(tmp_path / "x")]) == 1
    assert "none" in capsys.readouterr().err
