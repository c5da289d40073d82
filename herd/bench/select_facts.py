"""What `herd bench select` says of the scores: do they rank by difficulty, and how many wrong labels are kept?"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from herd.bench.select_world import WRONG, World
from herd.core.files import read_json, write_json
from herd.core.statistics import spearman
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.loading.selection import NOT_LEARNABLE, read_selection, select_hardest
from herd.data.tasks.digits import solve
from herd.engine.load import load
from herd.engine.model import Prompt
from herd.engine.score import prompt_losses


def score_facts(world: World) -> dict[str, float]:
    """Figures of one seed. Ranks are of the examples with right labels, within each operation, and their mean."""
    wrong = {row["id"] for row in tables.read(world.data, "chats") if row["source"] == WRONG}
    rows, plain = (read_selection(world.folder / name) for name in ("selection", "selection-ifd"))
    exact = exact_rates(world)
    facts: dict[str, float] = {}
    for name, scored in (("pass rate", rows), ("log-probability", plain)):
        right = [row for row in scored if row["id"] not in wrong]
        digits = {row["id"]: len(row["prompt"].split()) - 1.0 for row in right}
        for kind in dict.fromkeys(row["kind"] for row in right):
            facts[f"rho with the digits, {name}, {kind}"] = rank(right, kind, digits)
            facts[f"rho with the exact rate, {name}, {kind}"] = -rank(right, kind, exact)
        for what in ("digits", "exact rate"):
            each = [value for fact, value in facts.items() if fact.startswith(f"rho with the {what}, {name}, ")]
            facts[f"rho with the {what}, {name}"] = statistics.fmean(each)
        mean = {(row["kind"], digits[row["id"]]): 0.0 for row in right}
        for cell in mean:
            of = [row["difficulty"] for row in right if (row["kind"], digits[row["id"]]) == cell]
            mean[cell] = statistics.fmean(of)
        cells = [[cell for cell in mean if cell[0] == kind] for kind in dict.fromkeys(cell[0] for cell in mean)]
        of_cells = [spearman([cell[1] for cell in of], [mean[cell] for cell in of]) for of in cells]
        facts[f"rho with the digits, {name}, means of cells"] = statistics.fmean(of_cells)
        drawn = stream(world.seed, "control").permutation([row["difficulty"] for row in right]).tolist()
        facts[f"rho with the digits, {name}, shuffled"] = spearman([digits[row["id"]] for row in right], drawn)
    never = [row["why"] == NOT_LEARNABLE for row in rows]
    facts["share that is not learnable"] = statistics.fmean(never)
    found = [out for row, out in zip(rows, never, strict=True) if row["id"] in wrong]
    facts["share of the wrong labels that is not learnable"] = statistics.fmean(found)
    for keep in (0.5, 0.05):
        judged = [row | {"why": NOT_LEARNABLE if out else ""} for row, out in zip(rows, never, strict=True)]
        for name, of in (("", judged), (" without a teacher", [row | {"why": ""} for row in rows])):
            kept = select_hardest(of, keep, world.seed)
            facts[f"enrichment, hardest {keep:.0%}{name}"] = enrichment(kept, wrong)
    facts["enrichment, hardest 50% by log-probability"] = enrichment(plain, wrong)
    return facts


def rank(rows: Sequence[Mapping[str, Any]], kind: str, true: Mapping[str, float]) -> float:
    """Rank correlation of the difficulties of one kind with what is known of each example."""
    of = [row for row in rows if row["kind"] == kind]
    return spearman([row["difficulty"] for row in of], [true[row["id"]] for row in of])


def enrichment(rows: Sequence[Mapping[str, Any]], wrong: set[str]) -> float:
    """How many times the share of wrong labels is larger among those kept."""
    kept = [row["id"] in wrong for row in rows if row["kept"]]
    return statistics.fmean(kept) / (len(wrong) / len(rows))


def exact_rates(world: World) -> dict[str, float]:
    """The probability of the right answer to each question, the mean over the checkpoints: what drawing answers
    estimates. From its log-probability, so that nothing is drawn."""
    path = world.folder / "exact.json"
    if not path.exists():
        asked = [row["id"] for row in tables.read(world.data, "chats")]
        rates: list[list[float]] = []
        for folder in world.checkpoints:
            model = load(folder)
            prompts, counts = [], []
            for text in asked:
                prompt = model.render([{"role": "user", "content": text}]).token_ids
                answer = [*model.tokenizer.encode(str(solve(text))), model.config.special.eot]
                prompts.append(Prompt(token_ids=[*prompt, *answer]))
                counts.append(len(answer))
            nats = prompt_losses(model, prompts)
            rates.append([float(np.exp(-one[-count:].sum())) for one, count in zip(nats, counts, strict=True)])
        write_json(path, dict(zip(asked, np.mean(rates, axis=0).tolist(), strict=True)))
    known: dict[str, float] = read_json(path)
    return known
