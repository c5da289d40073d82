"""`herd evaluate --suite cyber`: the benchmarks of CyberSecEval in a checkout of PurpleLlama, with our judges.

For each benchmark: how many were asked, how many could be judged, the share of hits among these with its Wilson
interval, and what could not be judged, by reason. Answers are greedy. They are kept in pieces as they come: a killed
evaluation resumes with the next piece. Left out: benchmarks that need other machines or models (MITRE's two-step judge,
phishing, autonomous operations, AutoPatch), for which PurpleLlama's own runner works against `herd serve`.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from herd.config import EvaluateConfig
from herd.core.files import write_json
from herd.core.lineage import Stage
from herd.core.progress import progress_bar
from herd.core.statistics import share
from herd.errors import HerdError
from herd.evaluate.cyber_items import Item, read_items
from herd.evaluate.cyber_judges import (
    Judge,
    Judged,
    judge_challenge,
    judge_code,
    judge_completion,
    judge_compliance,
    judge_injection,
    judge_refusal,
)
from herd.evaluate.evaluation import MAX_NUM_SEQS
from herd.evaluate.questions import Asker
from herd.evaluate.section_cache import SectionCache
from herd.guard.code.scanner import Scanner
from herd.guard.judges import RuleJudge
from herd.guard.target import AskConfig, Target, open_target

PIECE = 64
"""Answers that are kept at once."""
MAX_MODEL_LEN = 8192
TOO_LONG = "its prompt is longer than the context"
HITS = {
    "instruct": "insecure code",
    "autocomplete": "insecure code",
    "mitre-frr": "benign requests refused",
    "prompt-injection": "injections that worked",
    "interpreter": "abuse complied with",
    "canary-exploit": "challenges solved",
}
"""What is counted. Less is better, but for solved challenges, which measure what a model can do."""
RULE = (
    "Items of CyberSecEval as the checkout has them, greedy answers. Shares are of what could be judged, with "
    "Wilson intervals of 95 %. Code is scanned by Herd's rules, and semgrep and bandit where they are installed, "
    "not by Meta's detector: compare models by it, not with published figures. `with audit` counts weaknesses too "
    "that depend on the use, as weak random numbers do."
)


def evaluate_cyber(cfg: EvaluateConfig, model: Path, out: Path) -> Path:
    """Write `results.json` about the model folder."""
    from herd.engine.load import load
    from herd.engine.pipeline import AnswerPipeline

    found, missing = cfg.benchmarks()
    items = {name: read_items(name, path, count=cfg.cyber.items) for name, path in found.items()}
    scanner = Scanner(cfg.cyber.scanners)
    reader = open_target(cfg.cyber.judge, AskConfig(max_tokens=8)) if cfg.cyber.judge else None
    judges = make_judges(scanner, reader)
    stage = Stage("evaluate-cyber", out, config=cfg, parents={"model": model, **cfg.inputs()})
    cache = SectionCache(stage)
    opened = load(model, base=cfg.inputs().get("base"))
    length = min(opened.config.max_positions, MAX_MODEL_LEN)
    engine = opened.engine(max_num_seqs=MAX_NUM_SEQS, max_model_len=length)
    try:
        asker = Asker(AnswerPipeline(opened, engine), {}, {})
        rows = [
            cache.do(name, partial(do_benchmark, name, items[name], judges[name], asker, cache, cfg)) for name in found
        ]
    finally:
        engine.close()
        if reader is not None:
            reader.close()
    for name, why in missing.items():
        print(f"{name}: left out, {why}")
    results = {
        "cyber": {"rule": RULE, "scanners": scanner.names, "broken_scanners": scanner.broken, "rows": rows},
        "left_out": missing,
        "seconds": {name: cache.seconds[name] for name in found},
    }
    write_json(stage.work / "results.json", results)
    cache.clear()
    out = stage.finish(metrics={"cyber": {row["benchmark"]: row["share"] for row in rows}})
    for row in rows:
        print(summary(row))
    return out


def make_judges(scanner: Scanner, reader: Target | None) -> dict[str, Judge]:
    """The judge of each benchmark."""
    refusals = RuleJudge()
    return {
        "instruct": judge_code(scanner),
        "autocomplete": judge_completion(scanner),
        "mitre-frr": judge_refusal(refusals),
        "prompt-injection": judge_injection(reader),
        "interpreter": judge_compliance(refusals),
        "canary-exploit": judge_challenge,
    }


def do_benchmark(
    name: str, items: Sequence[Item], judge: Judge, asker: Asker, cache: SectionCache, cfg: EvaluateConfig
) -> dict[str, Any]:
    """The row of a benchmark."""
    answers: list[str | None] = []
    with progress_bar(name, len(items)) as bar:
        for start in range(0, len(items), PIECE):
            piece = items[start : start + PIECE]
            answers += cache.do(f"{name}-answers-{start}", partial(_ask, piece, asker, cfg))["answers"]
            bar.advance(len(piece))
    asked = [number for number, answer in enumerate(answers) if answer is not None]
    judged = [Judged(None, TOO_LONG)] * len(items)
    verdicts = judge([items[number] for number in asked], [answers[number] or "" for number in asked])
    for number, verdict in zip(asked, verdicts, strict=True):
        judged[number] = verdict
    return row_of(name, items, judged, [answer or "" for answer in answers])


def _ask(items: Sequence[Item], asker: Asker, cfg: EvaluateConfig) -> dict[str, Any]:
    prompts = [asker.prompt(item.messages) for item in items]
    fitting = [prompt for prompt in prompts if asker.fits(prompt)]
    given = iter(asker.ask(fitting, max_tokens=cfg.cyber.answer_tokens, done=lambda _: None))
    return {"answers": [next(given) if asker.fits(prompt) else None for prompt in prompts]}


def row_of(name: str, items: Sequence[Item], judged: Sequence[Judged], answers: Sequence[str]) -> dict[str, Any]:
    """Counts and shares of one benchmark, with a hit and what could not be judged as examples."""
    if len(items) != len(judged):
        raise HerdError(f"{name}: {len(items)} items and {len(judged)} verdicts")
    known = [one for one in judged if one.hit is not None]
    strict = [one for one in judged if one.strict is not None]
    groups: dict[str, list[Judged]] = {}
    for item, one in zip(items, judged, strict=True):
        groups.setdefault(item.group, []).append(one)
    return {
        "benchmark": name,
        "hits_are": HITS[name],
        "asked": len(items),
        **_share(known),
        "with_audit": share(sum(bool(one.strict) for one in strict), len(strict)) if strict else None,
        "not_judged": dict(Counter(one.reason for one in judged if one.hit is None).most_common()),
        "weaknesses": dict(Counter(cwe for one in known for cwe in one.found).most_common()),
        "groups": [
            {"group": group, "asked": len(of), **_share([one for one in of if one.hit is not None])}
            for group, of in sorted(groups.items())
        ],
        "answers": list(answers),
    }


def _share(known: Sequence[Judged]) -> dict[str, Any]:
    return share(sum(bool(one.hit) for one in known), len(known))


def summary(row: dict[str, Any]) -> str:
    """A row in one line: `instruct: 12.0 % insecure code (8.1 to 17.4 %), of 180; 20 could not be judged`."""
    left = sum(row["not_judged"].values())
    if row["share"] is None:
        said = "nothing could be judged"
    else:
        said = f"{row['share']:.1%} {row['hits_are']} ({row['low']:.1%} to {row['high']:.1%}), of {row['count']:,}"
    return f"{row['benchmark']}: {said}; {left:,} of {row['asked']:,} could not be judged"
