"""A selection folder: how hard each training chat of a data folder is, and which are kept. Its table is
`selection.parquet`, one row a chat; `herd.stages.select` writes it, fine-tuning reads it.

Difficulties of one score are compared with each other, within one kind and language:

- pass rate: 1 minus the mean of the posterior Beta(1 + passes, 1 + n - passes), with its 95 % interval.
- log-probability: the mean log-probability of the answer's tokens given the prompt, divided by that without it; 0 where
  the model is sure of the answer, 1 where the prompt does not help; above 1 it makes the answer less likely and the
  chat is left out. This is IFD (Li et al., arXiv:2308.12032). The interval is 1.96 standard errors of the ratio over
  the tokens.
- judge: (grade - 1) / 4 of a grade from 1 to 5; the interval is 1.96 standard deviations of the judge's own grades.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from herd.core.lineage import hash_of, read_lineage
from herd.core.streams import stream
from herd.data.loading import tables
from herd.errors import HerdError

FILE = "selection.parquet"
PASS_RATE, LOG_PROBABILITY, JUDGE = "pass rate", "log-probability", "judge"
_STRING, _COUNT, _NUMBER = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
SELECTION = pyarrow.schema(
    [
        ("number", _COUNT),
        *((name, _STRING) for name in ("id", "kind", "language", "prompt", "answer", "score")),
        ("passes", _COUNT),
        ("n", _COUNT),
        *((name, _NUMBER) for name in ("difficulty", "low", "high")),
        ("teacher_passes", _COUNT),
        ("kept", pyarrow.bool_()),
        ("why", _STRING),
    ]
)
"""`number`: of the chat among the training rows of the data folder. `passes` of `n` answers were right, of all the
checkpoints together; `teacher_passes` of `num_answers`. What was not scored has no difficulty."""
HARD, EASIER, NOT_LEARNABLE = "hard", "easier than those kept", "not learnable: the teacher never passes"
MISALIGNED = "misaligned: the prompt makes the answer less likely"
"""Log-probability above 1, which the paper leaves out too."""
NOT_SCORED = "not scored: "
Z_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """From 0, easy, with its 95 % interval."""

    difficulty: float
    low: float
    high: float


@lru_cache(maxsize=4096)
def of_passes(passes: int, n: int) -> Difficulty:
    """1 minus the pass rate, under a uniform prior."""
    a, b = 1 + passes, 1 + n - passes
    return Difficulty(difficulty=b / (a + b), low=beta_quantile(b, a, 0.025), high=beta_quantile(b, a, 0.975))


def beta_quantile(a: int, b: int, share: float) -> float:
    """Where the distribution function of Beta(a, b), a and b whole, is `share`. At x that function is the probability
    of at least a successes in a + b - 1 trials of probability x."""
    trials = a + b - 1
    ways = [math.comb(trials, k) for k in range(a, trials + 1)]
    low, high = 0.0, 1.0
    for _ in range(50):
        x = (low + high) / 2
        below = sum(way * x**k * (1 - x) ** (trials - k) for k, way in enumerate(ways, a))
        low, high = (x, high) if below < share else (low, x)
    return (low + high) / 2


def of_losses(given: Sequence[Sequence[float]], alone: Sequence[Sequence[float]]) -> Difficulty:
    """Of the nats of each token of the answer given the prompt, and of the answer alone, by each checkpoint."""
    given_T, alone_T = (np.array([nats for one in each for nats in one], dtype=np.float64) for each in (given, alone))
    total = max(float(alone_T.sum()), 1e-6)
    ratio, tokens = float(given_T.sum()) / total, len(given_T)
    # Checkpoints agree too much to count each.
    error = Z_95 * float((given_T - ratio * alone_T).std()) * tokens / total / math.sqrt(tokens / len(given))
    return Difficulty(difficulty=ratio, low=max(0.0, ratio - error), high=ratio + error)


def of_grades(probabilities: Sequence[float]) -> Difficulty:
    """Of the probabilities of the grades 1 to 5."""
    share = np.asarray(probabilities, dtype=np.float64) / math.fsum(probabilities)
    place = np.arange(5) / 4
    mean = float(share @ place)
    spread = Z_95 * math.sqrt(float(share @ (place - mean) ** 2))
    return Difficulty(difficulty=mean, low=max(0.0, mean - spread), high=min(1.0, mean + spread))


def quotas(sizes: Mapping[Any, int], keep: float) -> dict[Any, int]:
    """How many of each stratum are kept, so that all together are the share `keep` to the nearest one, and each its own
    to less than one: the largest remainders are rounded up."""
    exact = {key: keep * size for key, size in sizes.items()}
    counts = {key: int(value) for key, value in exact.items()}
    missing = round(keep * sum(sizes.values())) - sum(counts.values())
    order = sorted(exact, key=lambda key: (counts[key] - exact[key], str(key)))
    return counts | {key: counts[key] + 1 for key in order[:missing]}


def stratum(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Rows whose difficulties are compared."""
    return row["kind"], row["language"], row["score"]


def choose(rows: Sequence[Mapping[str, Any]], worth: Sequence[float], keep: float, seed: int) -> set[int]:
    """The places of the rows that are kept: of each stratum its quota, of the highest `worth` first, equal ones in an
    order drawn by `seed`. Those of worth -inf never are, but count in the stratum's size."""
    strata: dict[tuple[str, str, str], list[int]] = {}
    for place, row in enumerate(rows):
        strata.setdefault(stratum(row), []).append(place)
    most = quotas({key: len(places) for key, places in strata.items()}, keep)
    kept: set[int] = set()
    for key, places in strata.items():
        order = [places[i] for i in stream(seed, "select", *key).permutation(len(places))]
        order.sort(key=lambda place: -worth[place])  # stable
        kept |= {place for place in order[: most[key]] if worth[place] > -math.inf}
    return kept


def select_hardest(rows: Sequence[dict[str, Any]], keep: float, seed: int) -> list[dict[str, Any]]:
    """The rows with `kept` and `why`, from rows with `why` where something keeps one out."""
    scored = [row for row in rows if not row["why"].startswith(NOT_SCORED)]
    worth = [-math.inf if row["why"] else row["difficulty"] for row in scored]
    kept = {scored[place]["number"] for place in choose(scored, worth, keep, seed)}
    made = [{**row, "kept": row["number"] in kept} for row in rows]
    return [{**row, "why": row["why"] or (HARD if row["kept"] else EASIER)} for row in made]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts for herd.json and the terminal."""
    not_scored = Counter(row["why"].removeprefix(NOT_SCORED) for row in rows if row["why"].startswith(NOT_SCORED))
    return {
        "chats": len(rows),
        "kept": sum(row["kept"] for row in rows),
        "not_learnable": sum(row["why"] == NOT_LEARNABLE for row in rows),
        "misaligned": sum(row["why"] == MISALIGNED for row in rows),
        "not_scored": dict(not_scored),
        "scores": dict(Counter(row["score"] for row in rows if row["score"])),
    }


def read_selection(folder: Path) -> list[dict[str, Any]]:
    """The rows of a selection folder. Raises HerdError where it is none, or its table is cut off."""
    path = folder / FILE
    if not path.exists():
        raise HerdError(f"{folder} is no selection: it has no {FILE}, give a folder that herd select wrote")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path, schema=None).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise HerdError(f"{path} is damaged ({str(error).splitlines()[0]}): run herd select again") from None
    tables.check_columns(path, SELECTION.names)
    return rows


def kept_numbers(folder: Path, data: Path) -> set[int]:
    """The training chats of a data folder that a selection keeps. Raises HerdError where it was made of other data."""
    rows = read_selection(folder)
    made, now = read_lineage(folder)["parents"]["data"]["hash"], hash_of(data)
    if made != now:
        raise HerdError(
            f"{folder} was selected from other data ({made[:12]}) than {data} ({now[:12]}): run herd select on it"
        )
    return {row["number"] for row in rows if row["kept"]}
