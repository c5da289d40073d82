"""`herd evaluate --suite long`: what a model finds in a long text, at ten depths, far beyond the lengths of training.

One reading of real text serves all lengths (herd.evaluate.needle). Each kind of planted task is asked at every length;
needles at ten depths, whose shares are the heat map. Controls on the same text: the needle or the grammar taken out,
and the queries' temperature off. A whole novel is asked about, beside the same questions after another text. Loss by
position is of a plain forward over a document no longer than training's; beyond it, of the same passages after longer
and longer texts. Each kind at each length is kept when it is done, so a killed evaluation reads the text again and goes
on with the next. The kinds follow RULER (arXiv 2404.06654) in purpose; wordings, keys and numbers are ours, and no
key was ever trained on.
"""

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from herd.config import EvaluateConfig
from herd.core.files import write_atomic, write_json
from herd.core.lineage import Stage
from herd.core.streams import stream
from herd.data import planted
from herd.data.haystack import haystack
from herd.data.long import evaluation_keys
from herd.data.planted import Keys, Planter, Quiz
from herd.engine.load import load
from herd.engine.model import LoadedModel
from herd.engine.reader import Reader
from herd.evaluate import book, grammar
from herd.evaluate.charts import recall_map
from herd.evaluate.harness import Sections
from herd.evaluate.needle import DEPTHS, Asked, Haystack
from herd.model.pack import pack_sequences
from herd.model.transformer import Transformer

Maker = Callable[[np.random.Generator, Keys], Quiz]


def needle_of(rng: np.random.Generator, keys: Keys, *, language: str = "en", decoys: int = 0) -> Quiz:
    return planted.needle(rng, keys, language, decoys=decoys)


TRANSLATION = "translation by a grammar, of 4"

TASKS: dict[str, Maker] = {
    "multi-key, 4 decoys": partial(needle_of, decoys=4),
    "multi-key, 16 decoys": partial(needle_of, decoys=16),
    "needle in German": partial(needle_of, language="de"),
    "needle in Japanese": partial(needle_of, language="ja"),
    "multi-value, 2": planted.multi_value,
    "variable, 2 hops": planted.variable,
    "list of 12": planted.table,
    "counting to 5": planted.counting,
    "order of two": planted.ordering,
    "votes for three": planted.aggregation,
    TRANSLATION: grammar.translation,
}

PASSAGES = 8
"""Pieces of text whose loss is told after texts of every length."""


def ask_all(
    hay: Haystack, name: str, maker: Maker, keys: Keys, length: int, seeds: int, *, planted: bool = True
) -> dict[float, list[Asked]]:
    """Answers by depth; what is asked is a function of the kind's name, the length, the depth and the seed."""
    answers: dict[float, list[Asked]] = {}
    for place, depth in enumerate(DEPTHS):
        for seed in range(seeds):
            rng = stream(seed, "needle", name, length, place)
            asked = hay.ask(maker(rng, keys), length=length, depth=depth, rng=rng, planted=planted)
            answers.setdefault(depth, []).append(asked)
    return answers


def share_right(answers: dict[float, list[Asked]]) -> float:
    return statistics.fmean(one.right for of_depth in answers.values() for one in of_depth)


@contextmanager
def answering(hay: Haystack, other: LoadedModel) -> Iterator[None]:
    """Let another model answer from the same cache: one that differs in its queries alone."""
    own = hay.reader.model
    hay.reader.model = other
    try:
        yield
    finally:
        hay.reader.model = own


def without_temperature(model: LoadedModel) -> LoadedModel:
    """The same weights, queries unscaled. Keys and values do not depend on the temperature."""
    config = replace(model.config, temperature=False)
    other = Transformer(config).requires_grad_(False)
    other.load_state_dict(model.transformer.state_dict(), assign=True)
    return replace(model, config=config, transformer=other.eval())


@torch.inference_mode()
def loss_by_position(model: LoadedModel, ids: np.ndarray, length: int, documents: int = 8) -> list[dict[str, float]]:
    """Mean loss in nats between powers of two of the position, over documents of `length` tokens."""
    losses = []
    for index in range(min(documents, len(ids) // length)):
        tokens_N = torch.from_numpy(ids[index * length : (index + 1) * length]).long()
        hidden_ND = model.transformer.forward_packed(pack_sequences([tokens_N], device=model.device))
        logits_NV = model.transformer.unembed(hidden_ND[:-1]).float()
        losses.append(F.cross_entropy(logits_NV, tokens_N[1:], reduction="none"))
    mean_N = torch.stack(losses).mean(0)
    edges = [0, *(2**power for power in range(6, 30) if 2**power < length), length]
    return [
        {"from": begin, "to": end, "loss": round(float(mean_N[begin:end].mean()), 4)} for begin, end in pairwise(edges)
    ]


def loss_after(reader: Reader, passages: np.ndarray, lengths: Sequence[int]) -> list[dict[str, float]]:
    """Mean loss in nats of the same passages [_, chunk] after the first tokens of what was read."""
    rows = []
    for length in (0, *lengths):
        with reader.kept([length // reader.chunk]):
            losses = [reader.losses(one[:1].tolist(), one[1:].tolist(), at=length) for one in passages]
        rows.append({"after": length, "loss": round(float(np.mean(losses)), 4)})
    return rows


def about_book(hay: Haystack, longest: int, asks: int) -> dict[str, Any]:
    """Shares of right answers about a novel, read up to `longest` tokens, and with the text of `hay` in its place."""
    reader, planter = hay.reader, hay.planter
    ids, read = book.fitting(book.chapters(), planter.tokenizer, longest)
    length = -(-len(ids) // reader.chunk) * reader.chunk
    ids = np.concatenate([ids, hay.ids[len(ids) : length]])  # up to the edge of a chunk
    asked = book.quizzes(read, stream(0, "book"), asks)

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
    told = right(Haystack(reader, planter, ids))
    rows = [{"kind": kind, "asked": len(asked[kind]), "right": told[kind], "other": other[kind]} for kind in told]
    return {"tokens": length, "chapters": len(read), "rows": rows}


class Questions:
    """What is asked of one model, each kind at each length a section of its own. The text is read when the first
    question comes that no earlier attempt has answered."""

    def __init__(self, model: LoadedModel, ids: np.ndarray, keys: Keys, sections: Sections) -> None:
        self.model, self.ids, self.keys, self.sections = model, ids, keys, sections

    @cached_property
    def hay(self) -> Haystack:
        """The text in a reader's cache."""
        reader = Reader(self.model, context=len(self.ids) + self.model.config.chunk_size)
        reader.read(torch.from_numpy(self.ids))
        return Haystack(reader, Planter(self.model.tokenizer), self.ids)

    def answers(
        self, name: str, maker: Maker, length: int, seeds: int, *, control: str = "", other: LoadedModel | None = None
    ) -> dict[float, list[Asked]]:
        """Answers by depth; a control has the same questions, unplanted or to another model."""

        def work() -> dict[str, Any]:
            with answering(self.hay, other or self.model):
                planted = not control or other is not None
                found = ask_all(self.hay, name, maker, self.keys, length, seeds, planted=planted)
            return {str(depth): [asdict(one) for one in of] for depth, of in found.items()}

        section = re.sub(r"\W+", "-", " ".join([str(length), name, control]).strip())
        told = self.sections.do(section, work)
        return {float(depth): [Asked(**one) for one in of] for depth, of in told.items()}


def evaluate_long(cfg: EvaluateConfig, model: Path, data: Path, out: Path) -> Path:
    """Write `results.json` and `recall.svg` about the model folder."""
    stage = Stage("evaluate-long", out, config=cfg, parents={"model": model, "data": data})
    sections, long = Sections(stage), cfg.long
    opened = load(model)
    chunk = opened.config.chunk_size
    lengths = sorted({max(chunk, length // chunk * chunk) for length in long.lengths})
    text = haystack(data, opened.tokenizer, lengths[-1] + PASSAGES * chunk)
    ids, passages = text[: lengths[-1]], text[lengths[-1] :].reshape(PASSAGES, chunk)
    questions = Questions(opened, ids, evaluation_keys(data), sections)
    plain = without_temperature(opened)
    asks = max(1, long.asks // len(DEPTHS))
    single: dict[int, dict[float, list[Asked]]] = {}
    rows: list[dict[str, Any]] = []
    for length in lengths:
        single[length] = questions.answers("single", planted.needle, length, long.seeds)
        found = {"single": share_right(single[length])}
        for name, maker in TASKS.items():
            found[name] = share_right(questions.answers(name, maker, length, asks))
        for name, maker, control, seeds, other in (
            ("single", planted.needle, "needle taken out", 1, None),
            (TRANSLATION, grammar.translation, "grammar taken out", asks, None),
            ("single", planted.needle, "temperature off", long.seeds, plain),
        ):
            told = questions.answers(name, maker, length, seeds, control=control, other=other)
            found[f"{name.partition(' ')[0]}, {control}"] = share_right(told)
        rows.append({"length": length, "times": round(length / long.trained, 1), **found})
    trained = min(long.trained, len(ids))
    by_position = sections.do("loss-by-position", lambda: {"rows": loss_by_position(opened, ids, trained)})
    after = sections.do("loss-after", lambda: {"rows": loss_after(questions.hay.reader, passages, lengths)})
    results = {
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
        "book": sections.do("book", lambda: about_book(questions.hay, lengths[-1], long.asks)),
    }
    write_json(stage.work / "results.json", results)
    write_atomic(stage.work / "recall.svg", map_of(results))
    sections.clear()
    return stage.finish(metrics={str(row["length"]): row["single"] for row in rows})


def map_of(results: dict[str, Any]) -> str:
    """The heat map of single needles: depth down, length to the right."""
    by_length = {int(length): of for length, of in results["depths"].items()}
    depths = next(iter(by_length.values()))
    rows = {f"{100 * float(depth):.0f} %": [of[depth] for of in by_length.values()] for depth in depths}
    return recall_map(rows, [short_length(length) for length in by_length])


def short_length(length: int) -> str:
    """131072 as 128K."""
    return f"{length / 2**20:g}M" if length >= 2**20 else f"{length / 2**10:g}K"
