"""`herd evaluate --suite long`: what a model finds in a long text, at ten depths, far beyond the lengths of training.

One reading of real text serves all lengths (herd.evaluate.needle). Each kind of planted task is asked at every length;
needles at ten depths, whose shares are the heat map. Controls on the same text: the needle or the grammar removed,
and the queries' temperature off, where the model has one. A whole novel is asked about, beside the same questions after
another text. Loss by position is of a plain forward over a document no longer than training's; beyond it, of the same
passages after longer and longer texts. Each kind at each length is kept when it is done: a killed evaluation reads the
text again and resumes with the next. The kinds follow RULER (arXiv 2404.06654) in purpose; wordings, keys and numbers
are ours, and no key was ever trained on.
"""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from herd.config import EvaluateConfig
from herd.core.files import write_atomic, write_json
from herd.core.lineage import Stage
from herd.core.streams import stream
from herd.data.packages import grammar, novel, planted
from herd.data.packages.haystack import haystack
from herd.engine.load import load
from herd.engine.model import LoadedModel
from herd.evaluate.charts import recall_map
from herd.evaluate.long_losses import loss_after, loss_by_position
from herd.evaluate.long_questions import (
    TASKS,
    TRANSLATION,
    Maker,
    Questions,
    disable_temperature,
    heldout_keys,
    share_right,
)
from herd.evaluate.needle import DEPTHS, AnswerToQuiz, Haystack
from herd.evaluate.section_cache import SectionCache
from herd.evaluate.training_length import training_length

PASSAGES = 8
"""Pieces of text whose loss is measured after texts of every length."""


def ask_about_book(hay: Haystack, longest: int, asks: int) -> dict[str, Any]:
    """Shares of right answers about a novel, read up to `longest` tokens, and with the text of `hay` in its place."""
    reader, planter = hay.reader, hay.planter
    ids, read = novel.read_chapters(novel.chapters(), planter.tokenizer, longest)
    length = -(-len(ids) // reader.chunk) * reader.chunk
    ids = np.concatenate([ids, hay.ids[len(ids) : length]])  # up to the edge of a chunk
    asked = novel.quizzes(read, stream(0, "book"), asks)

    def right(where: Haystack) -> dict[str, float]:
        return {
            kind: statistics.fmean(
                where.ask(one, length=length, depth=0.5, rng=stream(0, kind), planted=False).right for one in quizzes
            )
            for kind, quizzes in asked.items()
            if quizzes
        }

    other = right(hay)
    reader.read(torch.from_numpy(ids), begin=0)
    answered = right(Haystack(reader, planter, ids))
    rows = [
        {"kind": kind, "asked": len(asked[kind]), "right": answered[kind], "other": other[kind]} for kind in answered
    ]
    return {"tokens": length, "chapters": len(read), "rows": rows}


def evaluate_long(cfg: EvaluateConfig, model: Path, data: Path, out: Path) -> Path:
    """Write `results.json` and `recall.svg` about the model folder."""
    stage = Stage("evaluate-long", out, config=cfg, parents={"model": model, "data": data, **cfg.inputs()})
    cache, long = SectionCache(stage), cfg.long
    opened = load(model, base=cfg.inputs().get("base"))
    trained, trained_by = (long.trained, "settings") if long.trained else training_length(model, opened.config)
    chunk = opened.config.chunk_size
    lengths = sorted({max(chunk, length // chunk * chunk) for length in long.lengths})
    text = haystack(data, opened.tokenizer, lengths[-1] + PASSAGES * chunk)
    ids, passages = text[: lengths[-1]], text[lengths[-1] :].reshape(PASSAGES, chunk)
    questions = Questions(opened, ids, heldout_keys(data, opened, ids), cache)
    asks = max(1, long.asks // len(DEPTHS))
    single: dict[int, dict[float, list[AnswerToQuiz]]] = {}
    rows: list[dict[str, Any]] = []
    for length in lengths:
        single[length] = questions.answers("single", planted.needle, length, long.seeds)
        found = {"single": share_right(single[length])}
        for name, maker in TASKS.items():
            found[name] = share_right(questions.answers(name, maker, length, asks))
        controls: list[tuple[str, Maker, str, int, LoadedModel | None]] = [
            ("single", planted.needle, "needle removed", 1, None),
            (TRANSLATION, grammar.translation, "grammar removed", asks, None),
        ]
        if opened.config.temperature_tuning:
            controls.append(("single", planted.needle, "temperature off", long.seeds, disable_temperature(opened)))
        for name, maker, control, seeds, other in controls:
            answers = questions.answers(name, maker, length, seeds, control=control, other=other)
            found[f"{name.partition(' ')[0]}, {control}"] = share_right(answers)
        rows.append({"length": length, "times": round(length / trained, 1), **found})
    left_out = {} if opened.config.temperature_tuning else {"single, temperature off": "the model scales no queries"}
    for name, why in left_out.items():
        print(f"{name}: left out, {why}")
    document = min(trained, len(ids))
    by_position = cache.do("loss-by-position", lambda: {"rows": loss_by_position(opened, ids, document)})
    after = cache.do("loss-after", lambda: {"rows": loss_after(questions.hay.reader, passages, lengths)})
    results = {
        "trained": {"tokens": trained, "from": trained_by},
        "left_out": left_out,
        "rows": rows,
        "depths": {
            length: {depth: share_right({depth: of}) for depth, of in of_length.items()}
            for length, of_length in single.items()
        },
        "cut_by_edges": {length: sum(one.cut for of in single[length].values() for one in of) for length in lengths},
        "loss_by_position": by_position["rows"],
        "loss_after": after["rows"],
        "samples": [asdict(one) for of in single[lengths[-1]].values() for one in of][:20],
        # Last, as it takes the text's place.
        "book": cache.do("book", lambda: ask_about_book(questions.hay, lengths[-1], long.asks)),
    }
    write_json(stage.work / "results.json", results)
    write_atomic(stage.work / "recall.svg", draw_recall(results))
    cache.clear()
    return stage.finish(metrics={str(row["length"]): row["single"] for row in rows})


def draw_recall(results: dict[str, Any]) -> str:
    """The heat map of single needles: depth down, length to the right."""
    by_length = {int(length): of for length, of in results["depths"].items()}
    depths = next(iter(by_length.values()))
    rows = {f"{100 * float(depth):.0f} %": [of[depth] for of in by_length.values()] for depth in depths}
    return recall_map(rows, [short_length(length) for length in by_length])


def short_length(length: int) -> str:
    """131072 as 128K."""
    return f"{length / 2**20:g}M" if length >= 2**20 else f"{length / 2**10:g}K"
