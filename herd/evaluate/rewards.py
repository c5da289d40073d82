"""What the report shows of learning from rewards: curves of metrics.jsonl, and answers out of the journal.

Pass rates are of all that was drawn. Beside them is what the same answers get under the prompts of other groups
(`shuffled`): what guessing without a look at the prompt is worth. Any key may be absent.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.evaluate.charts import Points, line_chart
from herd.evaluate.curves import Lines, curve, learns_from_rewards
from herd.evaluate.run_folder import StageFolder
from herd.rl.journal import Journal
from herd.rl.record import Group, Rollout

MOST_CELLS = 8
"""Cells of which a group is shown."""
MOST_CHARACTERS = 600
"""Of a prompt or an answer that is shown."""
MARKS = re.compile(r"(?:<\|[^|>]*\|>\s*)+")


def effective_size(line: Mapping[str, Any]) -> float | None:
    """Of the ratios of a step: their mean squared over the mean of their squares, 1 where all are equal."""
    mean, squared = line.get("ratio"), line.get("ratio_squared")
    return mean**2 / squared if mean is not None and squared else None


def with_effective_size(lines: Lines) -> list[dict[str, Any]]:
    """The lines, with the effective sample size where it follows from them."""
    return [{**line, "ess": size} if (size := effective_size(line)) is not None else dict(line) for line in lines]


def numbered(lines: Lines, pattern: str) -> list[str]:
    """The keys that match, by the number in them."""
    keys = {key for line in lines for key in line if re.fullmatch(pattern, key)}
    return sorted(keys, key=lambda key: int("".join(filter(str.isdigit, key))))


def reward_charts(stage_lines: Lines) -> list[str]:
    """Rewards, pass rates, ages, ratios, entropy, truncation and cost of one stage; [] where none was learnt from."""
    lines = with_effective_size(stage_lines)
    passes, shuffled = numbered(lines, r"pass@\d+"), numbered(lines, r"pass@\d+_shuffled")
    drifts = {f"age {key.rpartition('_')[2]}": curve(lines, key) for key in numbered(lines, r"drift_age_\d+")}

    def of(**keys: str) -> dict[str, Points]:
        return {name.replace("_", " "): curve(lines, key) for name, key in keys.items()}

    charts = [
        line_chart("Mean reward of all that was drawn", of(reward="reward")),
        line_chart(
            "Pass rates, and with answers shuffled among the prompts",
            {key.replace("_", " "): curve(lines, key) for key in (*passes, *shuffled)},
            from_zero=True,
        ),
        line_chart("Age of the trained tokens, in versions", of(mean="age", most="age_max"), from_zero=True),
        line_chart("Mean ratio of probabilities, and effective sample size", of(ratio="ratio", ESS="ess")),
        line_chart("k3 between trainer and engine", of(k3="k3", to_the_reference="reference_k3"), from_zero=True),
        line_chart("Mean |log ratio| by age", dict(list(drifts.items())[:5]), from_zero=True),
        line_chart("Share of tokens clipped and masked", of(clipped="clipped", masked="masked"), from_zero=True),
        line_chart("Entropy, nats per drawn token", of(entropy="entropy"), from_zero=True),
        line_chart("Share of answers cut off at their limit", of(truncated="truncated"), from_zero=True),
        line_chart("Tokens of an answer", of(mean="length", longest="length_max"), from_zero=True),
        line_chart("Tokens drawn for each that is trained", of(drawn="drawn_per_trained"), from_zero=True),
        line_chart("Share of groups whose rewards differ", of(groups="with_signal"), from_zero=True),
    ]
    return [chart for chart in charts if chart]


SUMMARY = {
    "reward": "mean reward",
    "truncated": "cut off at the limit",
    "entropy": "entropy, nats per token",
    "length": "tokens of an answer",
    "with_signal": "groups whose rewards differ",
    "drawn_per_trained": "tokens drawn for each trained",
    "age": "age, versions",
    "k3": "k3",
    "ess": "effective sample size",
}


def first_and_last(stage_lines: Lines) -> list[tuple[str, float, float]]:
    """Each figure in words, its mean over the first tenth of the steps and over the last."""
    lines = with_effective_size(stage_lines)
    passes = [*numbered(lines, r"pass@\d+"), *numbered(lines, r"pass@\d+_shuffled")]
    rows = []
    for key, words in {**SUMMARY, **{name: name.replace("_", ", ") for name in passes}}.items():
        values = [value for _, value in curve(lines, key)]
        tenth = max(1, len(values) // 10)
        if values:
            rows.append((words, sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth))
    return rows


def learned_from_rewards(stage: StageFolder) -> dict[str, Any] | None:
    """All that the page shows of a stage; None where it did not learn from rewards."""
    if not learns_from_rewards(stage.metrics):
        return None
    alarms = list(dict.fromkeys((line["step"], said) for line in stage.metrics for said in line.get("alarms", ())))
    found = {
        "name": stage.name, "charts": reward_charts(stage.metrics), "rows": first_and_last(stage.metrics),
        "alarms": alarms, "counts": {}, "samples": [], "missing": "",
    }  # fmt: skip
    path = stage.path / "journal"
    try:
        journal = Journal(path, read_only=True)
    except HerdError as error:
        return {**found, "missing": str(error)}
    try:
        return {**found, "counts": counts(journal), "samples": samples(journal, open_tokenizer(stage))}
    finally:
        journal.close()


def counts(journal: Journal) -> dict[str, int]:
    """Groups by what became of them."""
    dropped = Counter(journal.dropped.values())
    return {
        "admitted": len(journal.admitted),
        "drawn and judged": len(journal.finished),
        "trained": sum(map(len, journal.picked.values())),
        **{f"dropped: {why}": number for why, number in sorted(dropped.items())},
    }


def open_tokenizer(stage: StageFolder) -> Tokenizer | None:
    """A stage in work has not written its tokenizer yet."""
    return Tokenizer.load(stage.path) if (stage.path / "tokenizer.json").is_file() else None


def samples(journal: Journal, tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    """Of the group of each cell that was trained last: its first answer of the highest reward, and of the lowest."""
    newest: dict[tuple[str, str], tuple[int, int]] = {}
    for step, ordinals in sorted(journal.picked.items()):
        for ordinal in sorted(ordinals):
            admitted = journal.admitted[ordinal]
            newest[admitted.environment, admitted.cell] = step, ordinal
    shown = sorted(newest.items())[:: max(1, -(-len(newest) // MOST_CELLS))]
    return [sample(journal.group(ordinal), step, tokenizer) for _, (step, ordinal) in shown]


def sample(group: Group, step: int, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """One group to be read."""
    right = max(group.rollouts, key=lambda one: one.reward)
    wrong = min(group.rollouts, key=lambda one: one.reward)
    return {
        "of": f"{group.environment}, {group.cell}, task {group.index}, step {step}",
        "prompt": prompt_text(right, tokenizer),
        "answers": [
            {"text": shortened(one.text), "reward": one.reward, "is_right": one is right, "truncated": one.truncated}
            for one in ([right, wrong] if right.reward > wrong.reward else [right])
        ],
        "rewards": sorted((one.reward for one in group.rollouts), reverse=True),
    }


def prompt_text(rollout: Rollout, tokenizer: Tokenizer | None) -> str:
    """What was asked, roles on lines of their own."""
    if tokenizer is None:
        return ""
    return shortened(MARKS.sub("\n", tokenizer.decode(rollout.prompt.tolist(), skip_special=False)).strip())


def shortened(text: str) -> str:
    return (
        text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS // 2] + " … " + text[-MOST_CHARACTERS // 2 :]
    )


def all_learned(stages: Sequence[StageFolder]) -> list[dict[str, Any]]:
    """Of each stage that learnt from rewards."""
    return [found for one in stages if (found := learned_from_rewards(one))]
