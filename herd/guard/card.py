"""The model card's words about a guard: what it catches and misses, in Markdown, from what its training measured."""

from collections.abc import Mapping
from typing import Any

from herd.data.tasks.safety.items import pairs
from herd.guard.taxonomy import HAZARDS


def guard_card(guard: Mapping[str, Any]) -> str:
    """The section about a guard, from the `guard` of its herd.json: figures with n and 95 % intervals, by category."""
    measured = guard["heldout"]
    recall, alarms = measured["recall"], measured["false_alarms"]
    kinds = ", ".join(f"{kind} {percent(row)} of {row['count']}" for kind, row in measured["flagged"].items())
    unseen = [code for code in HAZARDS.codes if code not in measured["by_category"]]
    lines = [
        f"Measured on generated messages alone, around {len(pairs('heldout'))} unsafe actions and their benign twins"
        " that training never saw, in other wordings than its own; each action comes several times, so that intervals "
        "of 95 % (Wilson) are too narrow for new actions. **No category was tested on real messages** in this run, and "
        f"training was in {', '.join(guard['languages'])}. From a score of {guard['threshold']:g} on a message is "
        "flagged.",
        "",
        f"* flagged of {recall['count']} unsafe messages: {percent(recall)} ({interval(recall)})",
        f"* flagged of {alarms['count']} safe messages: {percent(alarms)} ({interval(alarms)})",
        f"* flagged by kind: {kinds}",
        f"* macro F1 over categories: {measured['macro_f1']:.2f}",
        *[f"* {sentence}" for sentence in further(measured)],
        "",
        "| category | messages | named | 95 % interval | wrongly named | F1 | tested on |",
        "|---|---|---|---|---|---|---|",
    ]
    for code, row in measured["by_category"].items():
        hits = row["recall"]
        lines.append(
            f"| {code} {HAZARDS[code].name} | {hits['count']} | {percent(hits)} | {interval(hits)} "
            f"| {percent(row['false_alarms'])} | {row['f1']:.2f} | generated only |"
        )
    lines += [f"| {code} {HAZARDS[code].name} | 0 | – | – | – | – | nothing |" for code in unseen]
    return "\n".join(lines) + "\n"


def further(measured: Mapping[str, Any]) -> list[str]:
    """What else was measured, a sentence each: categories that were invented after the training, and drawings."""
    found = []
    if rows := measured.get("invented"):
        flagged, named, others = (rows[part] for part in ("flagged", "named", "others"))
        found.append(
            f"of {flagged['count']} requests that only a category invented after the training forbids, flagged "
            f"{percent(flagged)} ({interval(flagged)}), named {percent(named)}; of {others['count']} harmless ones "
            f"beside such a category, flagged {percent(others)} ({interval(others)})"
        )
    if rows := measured.get("pictures"):
        words = {
            "combined": "where only both together tell",
            "without": "the same without the drawings",
            "shuffled": "the same with those of another message",
            "plain": "the others",
        }
        shares = "; ".join(f"{words[part]} {percent(row)} of {row['count']}" for part, row in rows.items())
        found.append(f"with drawings, right verdicts: {shares}")
    return found


def percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['share']:.1f} %" if row["count"] else "–"


def interval(row: Mapping[str, Any]) -> str:
    return f"{100 * row['low']:.1f} – {100 * row['high']:.1f} %" if row["count"] else "–"
