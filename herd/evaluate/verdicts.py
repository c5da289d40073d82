"""The bars that a herd is meant to clear, each with its figure: held or fell short, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from herd.core.errors import HerdError, unknown

GIB = 2**30
RECIPE_SECONDS = 600
PEAK_BYTES = 6 * GIB
NAMING_RATIO = 10
LANGUAGE_SHARE = 0.9

COMPETITOR_NAMES = {
    "xz": "xz -9",
    "xz_primed": "xz -9 after the training text",
    "byte_5gram": "the byte 5-gram",
    "token_5gram": "the 5-gram over its own tokens",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One bar."""

    key: str
    """Names the bar in the config's `reasons`."""
    bar: str
    held: bool
    figure: str
    reason: str = ""

    def because(self, reasons: Mapping[str, str]) -> "Verdict":
        """With the given reason after the measured one, where the bar fell short."""
        if self.held or self.key not in reasons:
            return self
        return replace(self, reason=f"{self.reason} {reasons[self.key]}".strip())


def bits_verdicts(bits: Mapping[str, Any]) -> list[Verdict]:
    """The model against each baseline: it must win in every language."""
    verdicts = []
    for name, words in COMPETITOR_NAMES.items():
        lost = [row for row in bits["rows"] if row["model"] >= row[name]]
        everything = bits["all"]
        figure = (
            f"{everything['model']:.3f} against {everything[name]:.3f} bits per byte over all; "
            f"better in {len(bits['rows']) - len(lost)} of {len(bits['rows'])} languages"
        )
        if lost:
            behind = ", ".join(f"{row['language']} {row['model']:.2f} / {row[name]:.2f}" for row in lost)
            figure += f", not in {behind}"
        bar = f"fewer bits per byte than {words}, in every language"
        verdicts.append(Verdict(key=f"bits.{name}", bar=bar, held=not lost, figure=figure))
    return verdicts


def naming_verdicts(naming: Mapping[str, Any]) -> list[Verdict]:
    """Names of held-out pictures at least NAMING_RATIO times better than the control."""
    verdicts = []
    things = {"subjects": "subjects never trained on", "styles": "drawings in a style never trained on"}
    ways = {"open": "in its own words", "closed": "among candidates"}
    for split, thing in things.items():
        for way, words in ways.items():
            everything = naming["splits"].get(split, {}).get(way, {}).get("all")
            if everything is None:
                continue
            reach, reason = everything["reachable"], ""
            if way == "open" and reach["count"] < everything["count"]:
                reason = (
                    f"Only {reach['count']} of {everything['count']} right names are names of a training picture; "
                    f"{reach['hits']} of those were named."
                )
            figure = (
                f"{everything['hits']} of {everything['count']} right ({everything['share']:.1%}), "
                f"control {everything['control']:.2%}: {everything['ratio']:.1f} ×, "
                f"interval {everything['ratio_low']:.1f} to {everything['ratio_high']:.1f}"
            )
            verdicts.append(
                Verdict(
                    key=f"naming.{split}.{way}",
                    bar=f"names {thing}, {words}, at least {NAMING_RATIO} × better than with the pictures shuffled",
                    held=everything["ratio"] >= NAMING_RATIO,
                    figure=figure,
                    reason=reason,
                )
            )
    return verdicts


def language_verdicts(language: Mapping[str, Any]) -> list[Verdict]:
    """Answers in the language asked, in every language."""
    rows = [row for row in language["rows"] if row["count"]]
    if not rows:
        return []
    worst = min(rows, key=lambda row: row["share"])
    everything = language["all"]
    return [
        Verdict(
            key="language",
            bar=f"answers in the language asked, at least {LANGUAGE_SHARE:.0%} of the time in every language",
            held=worst["share"] >= LANGUAGE_SHARE,
            figure=(
                f"{everything['share']:.1%} over all, lowest {worst['language']} {worst['share']:.1%}; "
                f"by chance of shared names {everything['overlap'] or 0:.1%}"
            ),
        )
    ]


def recipe_verdicts(stages: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Time and memory of the whole recipe; `stages`: what stands in each herd.json."""
    if not stages:
        return []
    seconds = sum(stage["time_s"] - stage.get("download_s", 0.0) for stage in stages)
    peak = max(stages, key=lambda stage: stage["peak_memory_bytes"])
    return [
        Verdict(
            key="recipe.time",
            bar=f"the whole recipe within {RECIPE_SECONDS} s after downloads",
            held=seconds <= RECIPE_SECONDS,
            figure=f"{seconds:.0f} s: " + ", ".join(f"{stage['stage']} {stage['time_s']:.0f}" for stage in stages),
        ),
        Verdict(
            key="recipe.memory",
            bar=f"peak memory within {PEAK_BYTES / GIB:.0f} GiB",
            held=peak["peak_memory_bytes"] <= PEAK_BYTES,
            figure=f"{peak['peak_memory_bytes'] / GIB:.2f} GiB, in {peak['stage']}",
        ),
    ]


KEYS = (
    *(f"bits.{name}" for name in COMPETITOR_NAMES),
    *(f"naming.{split}.{way}" for split in ("subjects", "styles") for way in ("open", "closed")),
    "language",
    "recipe.time",
    "recipe.memory",
)


def read_reasons(reasons: Sequence[str]) -> dict[str, str]:
    """`"bits.xz: why"` lines as a table; an unknown bar is refused."""
    table = {}
    for line in reasons:
        key, colon, words = line.partition(":")
        if not colon:
            raise HerdError(f'reason {line!r} names no bar: write "BAR: why", with BAR one of {", ".join(KEYS)}')
        if key not in KEYS:
            raise unknown("bar in reasons", key, KEYS)
        table[key] = words.strip()
    return table
