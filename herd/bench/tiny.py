"""`herd bench tiny`: a finished run of the tiny recipe beside the targets that it was given.

The figures are those that the run's folder has, of its last evaluation and of each stage's time and memory: nothing is
measured again. Targets: fewer bits per byte than each baseline in every language; names of held-out pictures ten times
as often as with the pictures shuffled; answers in the language asked; the whole recipe's time and memory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.bench.table import Row, show
from herd.core.files import read_json
from herd.errors import HerdError
from herd.evaluate.bits import BASELINES
from herd.evaluate.run_folder import read_stages

GIB = 2**30
RECIPE_SECONDS = 600
PEAK_BYTES = 6 * GIB
NAMING_RATIO = 10
LANGUAGE_SHARE = 0.9


def tiny(run: Path, *, as_json: bool) -> None:
    """Print the rows."""
    stages = [stage for stage in read_stages(run) if stage.finished]
    evaluated = [stage for stage in stages if stage.lineage.get("stage") == "evaluate"]
    if not evaluated:
        raise HerdError(f"{run} has no finished evaluation: run `herd run tiny --out {run}` to its end")
    results = read_json(evaluated[-1].path / "results.json")
    rows = target_rows(results, [stage.lineage for stage in stages])
    show(rows, as_json=as_json)
    if not as_json:
        missed = [row for row in rows if row.ratio < 1]
        print(f"targets met: {len(rows) - len(missed)} of {len(rows)}")
        for row in missed:
            print(f"missed: {row.case}, {row.peer_name}")


def target_rows(results: Mapping[str, Any], lineages: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each target; its ratio is at least 1 where it is met."""
    rows = []
    if "bits_per_byte" in results:
        rows += bits_rows(results["bits_per_byte"])
    if "naming" in results:
        rows += naming_rows(results["naming"]["splits"]) + language_rows(results["naming"]["language"])
    return rows + recipe_rows(lineages)


def bits_rows(bits: Mapping[str, Any]) -> list[Row]:
    """Each baseline in the language where the model is worst beside it: it must win in all of them."""
    rows = []
    for name, words in BASELINES.items():
        languages = [row for row in bits["rows"] if name in row]
        if languages:
            worst = max(languages, key=lambda row: float(row["model"] / row[name]))
            won = sum(row["model"] < row[name] for row in languages)
            case = f"bits per byte, worst language ({worst['language']}; better in {won} of {len(languages)})"
            rows.append(Row(case=case, unit="bits", ours=worst["model"], peer=worst[name], peer_name=words))
    return rows


def naming_rows(splits: Mapping[str, Any]) -> list[Row]:
    """How often held-out pictures are named, as a multiple of the control."""
    return [
        Row(
            case=f"names of held-out pictures, {split}, {way} ({table['all']['hits']} of {table['all']['count']})",
            unit="x control", ours=table["all"]["ratio"], peer=NAMING_RATIO, peer_name="target", more_is_better=True,
        )
        for split, ways in splits.items()
        for way, table in ways.items()
        if table["all"]
    ]  # fmt: skip


def language_rows(language: Mapping[str, Any]) -> list[Row]:
    """The share of answers in the language asked, where it is lowest."""
    asked = [row for row in language["rows"] if row["count"]]
    if not asked:
        return []
    worst = min(asked, key=lambda row: float(row["share"]))
    return [
        Row(
            case=f"answers in the language asked, lowest language ({worst['language']})", unit="share",
            ours=worst["share"], peer=LANGUAGE_SHARE, peer_name="target", more_is_better=True,
        )
    ]  # fmt: skip


def recipe_rows(lineages: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Time and memory of the whole recipe."""
    seconds = sum(lineage["time_s"] - lineage.get("download_s", 0.0) for lineage in lineages)
    peak = max(lineages, key=lambda lineage: int(lineage["peak_memory_bytes"]))
    return [
        Row(case="the whole recipe", unit="s", ours=seconds, peer=RECIPE_SECONDS, peer_name="target"),
        Row(
            case=f"peak memory ({peak['stage']})", unit="GiB", ours=peak["peak_memory_bytes"] / GIB,
            peer=PEAK_BYTES / GIB, peer_name="target",
        ),
    ]  # fmt: skip
