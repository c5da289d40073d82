"""`herd bench lora`: what a model forgets when it learns chats, as adapters and as a whole.

From one model, on the same batches without replayed text, each seed is fine-tuned as a whole (the peer: the stage `sft`
at its own rates) and by adapters at some learning rates. Rows: bits per byte of held-out text, which were learnt before
(forgetting is their rise above the model's own); nats of the assistant's tokens in held-out chats without pictures,
which is what was learnt; and the right answers to the questions of the suite. Each run is an ordinary stage's folder
under `out`, its figures beside it: one that was stopped resumes from its checkpoint, one that is done is read. Biderman
et al., "LoRA Learns Less and Forgets Less" (arXiv 2405.09673), ask the same of larger models.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from herd.bench.table import Row, show
from herd.config import CheckpointConfig, EvaluateConfig, LoraConfig, SftConfig
from herd.core.files import read_json, write_json
from herd.core.lineage import hash_of
from herd.errors import HerdError
from herd.evaluate.bits import model_bits
from herd.evaluate.chat_loss import chat_loss
from herd.evaluate.evaluation import Evaluation
from herd.evaluate.sections import answered_chats, heldout_replies, tasks
from herd.stages.sft import sft
from herd.stages.unfinished import changes_since, describe

FULL, BEFORE = "full fine-tuning", "before"
ASKED = EvaluateConfig(heldout_bytes=20_000, chats=60, answer_tokens=16)
"""How much the figures are measured on."""
TEXT, CHATS = "held-out text", "held-out chats"
UNITS = {TEXT: "bits/byte", CHATS: "nats/token"}
"""Figures that are better when lower; the others are shares of right answers."""
Figures = dict[str, float]


def variants(*, seed: int, num_tokens: int, rank: int, rates: Sequence[float]) -> dict[str, SftConfig]:
    """The trainings of one seed: the whole model, and adapters at each rate."""
    full = SftConfig(seed=seed, num_tokens=num_tokens, replay_share=0.0, checkpoint=CheckpointConfig(every_s=60))
    adapters = {
        f"LoRA {rank} at {rate:g}": replace(
            full, lora=LoraConfig(rank=rank), optimizer=replace(full.optimizer, adamw_lr=rate)
        )
        for rate in rates
    }
    return {FULL: full, **adapters}


def trained(name: str, config: SftConfig, model: Path, data: Path, out: Path) -> Path:
    """The folder of a training, which is run unless it is there. Raises HerdError for one with other settings."""
    folder = out / f"{name.replace(' ', '-')}-{config.num_tokens}-{config.seed}"
    if not folder.exists():
        return sft(config, model, data, folder)
    if differ := changes_since(folder, config, {"model": model, "data": data}):
        raise HerdError(f"{folder} was trained with other settings ({describe(differ)}): give another --out")
    return folder


def figures(model: Path, data: Path, path: Path) -> Figures:
    """What a model knows of the data's held-out part; kept in the file `path`."""
    request = {"model": hash_of(model), "data": hash_of(data), "asked": json.dumps(asdict(ASKED))}
    if path.exists() and (kept := read_json(path))["request"] == request:
        return dict(kept["figures"])
    with Evaluation(ASKED, model, data) as run:
        held = run.heldout_texts
        if not held or answered_chats(run) or heldout_replies(run):
            raise HerdError(
                f"{data} holds out no text, or no chats with right answers and replies: give a data folder with both"
            )
        bits = model_bits(run.model, held, lambda _: None)
        num_bytes = sum(len(text.encode()) for texts in held.values() for text in texts)
        found = {TEXT: sum(map(sum, bits.values())) / num_bytes, CHATS: chat_loss(run)["nats"]}
        found |= {f"{row['kind']} questions": row["share"] for row in tasks(run)["rows"]}
    write_json(path, {"request": request, "figures": found})
    return found


def rows_of(before: Figures, found: dict[str, list[Figures]]) -> list[Row]:
    """Each adapter's figures, the mean over the seeds and each by itself, beside the whole model's and those before."""
    rows = []
    for name in [name for name in found if name != FULL]:
        for figure in before:
            ours, whole = ([one[figure] for one in found[which]] for which in (name, FULL))
            unit, more = UNITS.get(figure, "share"), figure not in UNITS
            pairs = [("", statistics.fmean(ours), statistics.fmean(whole), FULL)]
            pairs.append(("", statistics.fmean(ours), before[figure], BEFORE))
            if figure in UNITS and len(ours) > 1:
                pairs += [
                    (f", seed {seed}", one, other, FULL)
                    for seed, (one, other) in enumerate(zip(ours, whole, strict=True))
                ]
            rows += [
                Row(case=f"{name}: {figure}{of}", unit=unit, ours=one, peer=other, peer_name=peer, more_is_better=more)
                for of, one, other, peer in pairs
            ]
    return rows


def lora(
    model: Path,
    data: Path,
    out: Path,
    *,
    rank: int,
    rates: Sequence[float],
    seeds: int,
    num_tokens: int,
    as_json: bool,
) -> None:
    """Train, measure and print."""
    out.mkdir(parents=True, exist_ok=True)
    before = figures(model, data, out / "before.json")
    found: dict[str, list[Figures]] = {}
    for seed in range(seeds):  # all variants once before any again
        for name, config in variants(seed=seed, num_tokens=num_tokens, rank=rank, rates=rates).items():
            folder = trained(name, config, model, data, out)
            found.setdefault(name, []).append(figures(folder, data, folder.with_name(f"{folder.name}.json")))
    show(rows_of(before, found), as_json=as_json)
