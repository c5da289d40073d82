"""`herd bench dpo`: does a model write its answers as the pairs prefer, and does it still answer right?

A small model learns to copy, reverse and sort digits from demonstrations of which half are written "2 5 9" and half
"2,5,9". It then draws answers to other questions, and right ones of both forms make pairs in which commas are chosen.
Beside DPO on these: the same with a random winner, and fine-tuning on the chosen answers for as many tokens. All are
asked questions that nothing was trained on. What is finished under `out` is read.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from herd.bench.select_world import Question, fine_tune, new_model, questions, write_chats
from herd.bench.table import T_95, Row, interval, show
from herd.config import DpoConfig
from herd.core.files import read_json, write_json
from herd.core.lineage import read_lineage
from herd.core.streams import seed_of, stream
from herd.core.tracker import read_metrics
from herd.data.tasks.digits import solve
from herd.engine.load import load
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.stages.dpo import dpo

PARTS = {"heldout": 40, "data": 100, "pairs": 60}
"""Questions of each operation and number of digits; no question is in two parts."""
START_TOKENS = 300_000
DRAWS, HELDOUT_DRAWS = 8, 4
DPO_RATE, NLLS = 0.02, (5.0, 1.0, 0.1)
CHOSEN_TOKENS, CHOSEN_RATES = 40_000, (0.05, 0.2)
"""As many tokens as DPO reads, both answers of its pairs."""
START, RANDOM = "the start again", "a random winner"
Drawn = Sequence[Mapping[str, list[Any]]]
"""Of each question the answers' `texts` and numbers of `tokens`, the end token included."""


def draw(model: Path, asked: Sequence[Question], num_answers: int, kept: Path) -> Drawn:
    """Answers at temperature 1, kept in a file."""
    if not kept.exists():
        opened, params = load(model), SamplingParams(max_tokens=20, temperature=1.0)
        with closing(opened.engine(max_num_seqs=128)) as engine:
            requests = []
            for one in asked:
                prompt = opened.render([{"role": "user", "content": one.text}])
                requests.append(engine.submit(prompt, params, seed=seed_of(0, one.text), n=num_answers))
            outputs = [request.result() for request in requests]
        found = [
            {"texts": [one.text for one in answers], "tokens": [len(one.token_ids) for one in answers]}
            for answers in outputs
        ]
        write_json(kept, found)
    drawn: Drawn = read_json(kept)
    return drawn


def form_of(text: str) -> str:
    """`,` or a space, what stands between the digits; nothing where it is neither."""
    digits = text.replace(",", " ").split(" ")
    if not all(len(digit) == 1 and digit.isdecimal() for digit in digits):
        return ""
    return next((mark for mark in ", " if mark.join(digits) == text), "")


def is_right(question: Question, text: str) -> bool:
    """In either form."""
    return text.replace(",", " ") == solve(question.text)


def pair_rows(
    asked: Sequence[Question], drawn: Drawn, seed: int, *, random: bool
) -> list[tuple[Question, dict[str, str]]]:
    """For each question with right answers in both forms a pair, the comma chosen or, if `random`, in half of them."""
    rows: list[tuple[Question, dict[str, str]]] = []
    for one, answers in zip(asked, drawn, strict=True):
        right = {form_of(text): text for text in answers["texts"] if is_right(one, text)}
        if "," in right and " " in right:
            rows.append((one, {"prompt": one.text, "chosen": right[","], "rejected": right[" "]}))
    swapped = set(stream(seed, "winner").permutation(len(rows))[: len(rows) // 2].tolist()) if random else set()
    return [
        (one, {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if number in swapped else row)
        for number, (one, row) in enumerate(rows)
    ]


def figures(asked: Sequence[Question], drawn: Drawn, start: Drawn) -> dict[str, float]:
    """Of drawn answers: the share that wins over the start's, answer by answer, a tie counting half; that with commas,
    that is right in either form; and the mean number of tokens."""
    wins: list[float] = []
    commas: list[float] = []
    right: list[float] = []
    tokens: list[float] = []
    for one, ours, theirs in zip(asked, drawn, start, strict=True):
        for text, other, length in zip(ours["texts"], theirs["texts"], ours["tokens"], strict=True):
            wins.append((1 + (form_of(text) == ",") - (form_of(other) == ",")) / 2)
            commas.append(form_of(text) == ",")
            right.append(is_right(one, text))
            tokens.append(length)
    means: dict[str, list[float]] = {"win": wins, "commas": commas, "right": right, "tokens": tokens}
    return {name: statistics.fmean(values) for name, values in means.items()}


def as_demonstrated(asked: Sequence[Question], seed: int) -> list[str]:
    """Right answers, half of them with commas."""
    has_commas = stream(seed, "form").random(len(asked)) < 0.5
    return [
        str(solve(one.text)).replace(" ", "," if comma else " ") for one, comma in zip(asked, has_commas, strict=True)
    ]


def make_chats(folder: Path, asked: Sequence[Question], answers: Sequence[str]) -> Path:
    """A data folder of these, made now or before."""
    if not (folder / "herd.json").exists():
        write_chats(folder, asked, answers, ["digits"] * len(asked))
    return folder


def run_seed(seed: int, out: Path) -> dict[str, dict[str, float]]:
    """The figures of each arm."""
    folder, asked = out / f"seed-{seed}", questions(seed, PARTS)
    data = make_chats(folder / "data", asked["data"], as_demonstrated(asked["data"], seed))
    new = new_model(folder / "new", seed)
    start = fine_tune(folder / "start", new, data, num_tokens=START_TOKENS, seed=seed, rate=1.0)
    drawn = draw(start, asked["pairs"], DRAWS, folder / "pairs-drawn.json")
    both = draw(start, asked["heldout"], 2 * HELDOUT_DRAWS, folder / "start.json")
    before, again = (
        [{name: values[half] for name, values in one.items()} for one in both]
        for half in (slice(None, HELDOUT_DRAWS), slice(HELDOUT_DRAWS, None))
    )
    found = {START: figures(asked["heldout"], again, before)}

    def add(name: str, arm: Path) -> None:
        after = draw(arm, asked["heldout"], HELDOUT_DRAWS, arm.with_name(f"{arm.name}.json"))
        found[name] = figures(asked["heldout"], after, before)

    chosen: list[tuple[Question, str]] = []
    for nll, random in (*((nll, False) for nll in NLLS), (NLLS[0], True)):
        name = f"{RANDOM if random else 'DPO'}, nll {nll:g}"
        arm, pairs = folder / name.replace(" ", "-"), folder / ("random.jsonl" if random else "pairs.jsonl")
        rows = pair_rows(asked["pairs"], drawn, seed, random=random)
        if not random:
            chosen = [(one, row["chosen"]) for one, row in rows]
        if not arm.exists():
            pairs.write_text("".join(json.dumps(row) + "\n" for _, row in rows), encoding="utf-8")
            base = DpoConfig()
            rates = replace(base.optimizer, lr_scale=DPO_RATE)
            config = replace(base, pairs=str(pairs), seed=seed, nll=nll, context=64, dtype="bfloat16", optimizer=rates)
            dpo(config, start, arm)
        add(name, arm)
        lineage = read_lineage(arm)
        found[name] |= {fact: lineage["heldout"][fact] for fact in ("kl", "end_change")}
        found[name]["steps"] = len(read_metrics(arm / "metrics.jsonl"))
    taught = make_chats(folder / "chosen", [one for one, _ in chosen], [answer for _, answer in chosen])
    for rate in CHOSEN_RATES:
        arm = folder / f"chosen-{rate:g}"
        fine_tune(arm, start, taught, num_tokens=CHOSEN_TOKENS, seed=seed, rate=rate)
        add(f"fine-tuned on the chosen, rate {rate:g}", arm)
    return found


def bench_dpo(out: Path, *, seeds: int, as_json: bool) -> None:
    """Run and print."""
    if seeds not in T_95:
        raise HerdError(f"seeds={seeds} must be 2 to {max(T_95)}")
    found = [run_seed(seed, out) for seed in range(seeds)]
    if not as_json:
        for arm, facts in found[0].items():
            print(f"{arm}: " + ", ".join(f"{fact} {interval([one[arm][fact] for one in found])}" for fact in facts))
        for arm in found[0]:
            lost = interval([one[arm]["right"] - one[START]["right"] for one in found])
            print(f"{arm} - {START}, right: {lost}")
    measured = [(arm, fact) for arm in found[0] if arm != START for fact in ("win", "right", "tokens")]
    rows = [
        Row(
            case=f"{arm}: {fact}", unit="tokens" if fact == "tokens" else "share", peer_name=START, more_is_better=True,
            ours=statistics.fmean(one[arm][fact] for one in found),
            peer=statistics.fmean(one[START][fact] for one in found),
        )
        for arm, fact in measured
    ]  # fmt: skip
    show(rows, as_json=as_json)
