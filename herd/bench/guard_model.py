"""`herd bench guard --cases message`: a guard of messages on real items, beside a linear control.

The control is a logistic regression on the words and pairs of words of the same generated items: what the guard has
beyond it, it has from pre-training. Both are compared by the area under the curve and by the recall at the threshold
that flags 2 % of the safe items, so that neither gains by its threshold. At the guard's own threshold a table has
recall by category and false alarms by source, with Wilson intervals.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F

from herd.bench.guard_items import RealItem, real_items
from herd.bench.table import Row
from herd.core.statistics import share
from herd.data.sources.fetch import Pack
from herd.data.tasks.safety.items import make_item
from herd.guard.measure import Row as Judged
from herd.guard.measure import rates
from herd.guard.model_guard import Guard, Verdict

FLAGGED = 0.02
"""Share of the safe items at which recalls are compared."""
BUCKETS = 2**16
TRAINED_ITEMS, STEPS = 12_000, 300


def message_case(
    folder: Path, packs: Mapping[str, Pack], *, limit: int, report: Callable[[str], None] = print
) -> list[Row]:
    """Compare the guard in `folder` with the control on at most `limit` items of each source; prints the tables by
    category and source."""
    items = limited(real_items(packs), limit)
    with Guard(folder) as guard:
        verdicts = guard.judge_all([item.messages for item in items])
    for line in table(items, verdicts):
        report(line)
    ours = np.array([verdict.score for verdict in verdicts])
    control = linear_scores([f"{item.before} {item.text}" for item in items])
    rows = []
    for role, name in (("user", "requests"), ("assistant", "replies")):
        chosen = np.array([item.role == role for item in items])
        unsafe = np.array([item.unsafe for item in items])[chosen]
        for unit, measure in (("AUC", auc), ("recall at 2 % false alarms", recall_at)):
            both = [measure(scores[chosen][unsafe], scores[chosen][~unsafe]) for scores in (ours, control)]
            rows.append(
                Row(case=f"real {name}", unit=unit, ours=both[0], peer=both[1], peer_name="linear, same items",
                    more_is_better=True)
            )  # fmt: skip
    return rows


def limited(items: Sequence[RealItem], limit: int) -> list[RealItem]:
    """At most `limit` items of each source, as far from each other as can be, in their order."""
    by_source: dict[str, list[RealItem]] = {}
    for item in items:
        by_source.setdefault(item.source, []).append(item)
    return [of[place] for of in by_source.values() for place in sorted({i * len(of) // limit for i in range(limit)})]


def table(items: Sequence[RealItem], verdicts: Sequence[Verdict]) -> list[str]:
    """By category what is flagged and named, what is named wrongly and F1; by source recall and false alarms; all at
    the guard's threshold.

    Unsafe items whose label maps to no category of ours are no cases of a category that is named wrongly.
    """
    lines = ["by category: flagged; named; named of the others; F1 of what is named"]
    both = list(zip(items, verdicts, strict=True))
    rows = [
        Judged(codes=item.codes, kind=item.source, verdict=one) for item, one in both if item.codes or not item.unsafe
    ]
    for code, of in rates(rows)["by_category"].items():
        flagged = [row.verdict.unsafe for row in rows if code in row.codes]
        others = f"{_interval(of['false_alarms'])} of {of['false_alarms']['count']}"
        lines.append(f"  {code:<4} {_text(flagged)}; {_interval(of['recall'])}; {others}; {of['f1']:.2f}")
    for title, unsafe in (("recall by source", True), ("false alarms by source", False)):
        lines.append(title)
        for source in dict.fromkeys(item.source for item in items if item.unsafe == unsafe):
            chosen = [verdict for item, verdict in both if item.source == source and item.unsafe == unsafe]
            lines.append(f"  {source:<24} {_text([one.unsafe for one in chosen])}")
    return lines


def _text(flags: Sequence[bool]) -> str:
    return f"{_interval(share(sum(flags), len(flags)))} of {len(flags)}"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['share']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The probability that an unsafe item has a higher score than a safe one; ties count half."""
    both = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse][: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def recall_at(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of unsafe items above the score that FLAGGED of the safe ones reach."""
    return float((positive > np.quantile(negative, 1 - FLAGGED)).mean())


def linear_scores(texts: Sequence[str]) -> np.ndarray:
    """Scores of a logistic regression on words and pairs of words of generated items."""
    made = [make_item(0, "train", number) for number in range(TRAINED_ITEMS)]
    features, offsets = bags([f"{item.before} {item.text}" for item in made])
    target = torch.tensor([float(bool(item.codes)) for item in made])
    weight = torch.zeros(BUCKETS, 1, requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.05)
    for _ in range(STEPS):
        scores = F.embedding_bag(features, weight, offsets, mode="sum")[:, 0] + bias
        loss = F.binary_cross_entropy_with_logits(scores, target) + 1e-5 * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features, offsets = bags(texts)
    with torch.no_grad():
        found: np.ndarray = (F.embedding_bag(features, weight, offsets, mode="sum")[:, 0] + bias).numpy()
    return found


def bags(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The hashed words and pairs of words of texts, end to end, and where each text begins."""
    found: list[int] = []
    offsets = []
    for text in texts:
        offsets.append(len(found))
        words = ["", *text.lower().split()]
        found += [crc32(word.encode()) % BUCKETS for word in words[1:]]
        found += [crc32(f"{a} {b}".encode()) % BUCKETS for a, b in pairwise(words)]
    return torch.tensor(found), torch.tensor(offsets)
