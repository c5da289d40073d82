"""`herd dpo`: a model learns from pairs which of two answers is better. The model that it begins with is the
reference, whose log-probabilities of both answers are read once, before the training."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from herd.config.dpo import DpoConfig
from herd.config.sources import PreferenceSource
from herd.core.batch import Batch, to_device
from herd.core.lineage import Stage, hash_of
from herd.core.metrics import Mean, Number
from herd.data.loading import tables
from herd.data.loading.batches import Batches
from herd.data.loading.pair_batches import Pair, PairBatches, prompt_key, tokenize_pairs
from herd.data.media.image import ImageProcessor
from herd.data.sources.preferences import Preferences
from herd.data.sources.readers import files_of
from herd.data.sources.source import Notes
from herd.data.text.splits import held_out
from herd.errors import HerdError
from herd.model.parallel import Parallel, start
from herd.model.transformer import Transformer
from herd.rl.pairs import pair_rows
from herd.stages.language import heldout_loss, open_model, train_language
from herd.stages.model_folder import report_left_out, save_model
from herd.train.preference import PreferenceLossFunction, preference_loss
from herd.train.reference import reference_logprobs
from herd.train.stop_rules import StopRules

REFERENCE = "reference"
"""Folder in the unfinished work with what was read of the reference."""


def dpo(config: DpoConfig, model: Path, out: Path) -> Path:
    """Train the model folder `model` on pairs of answers; returns the finished folder `out`."""
    parallel = Parallel(start(config.parallel))
    stage = Stage("dpo", out, config=config, parents={"model": model, **config.inputs()})
    loss_fn = preference_loss(config, parallel)
    if config.heldout_every and not config.data:
        raise HerdError(f"heldout_every={config.heldout_every} reads the held-out text of a data folder: give --data")
    network, tokenizer = open_model(model, config, stage, parallel)
    pairs, left_out = tokenize_pairs(
        read_pairs(config), tokenizer, ImageProcessor(network.config.vision), config.context
    )
    facts = report_left_out(left_out, stage, parallel)
    if all(pair.heldout for pair in pairs):
        raise HerdError(
            f"no pair is left to train on of {config.pairs or config.run or config.data}: give more, or lower heldout"
        )
    identity = f"{hash_of(model)} {network.embedding.weight.dtype}"
    work = stage.work / REFERENCE
    reference = reference_logprobs(network, pairs, work, identity, parallel)
    batches = PairBatches(pairs, reference, config)
    counts = {"pairs": sum(not pair.heldout for pair in pairs), "heldout_pairs": sum(pair.heldout for pair in pairs)}
    if parallel.first:
        lengths = [sum(int(sample.learnt.sum()) for sample in side) / len(pairs)
                   for side in zip(*(pair.both for pair in pairs), strict=True)]  # fmt: skip
        print(
            f"dpo: {counts['pairs']:,} pairs to train on and {counts['heldout_pairs']:,} held out, chosen answers have "
            f"{lengths[0]:.1f} tokens, rejected ones {lengths[1]:.1f}",
            flush=True,
        )
    rules = StopRules(config, network.embedding.weight.device, parallel)
    hooks = heldout_loss(network, tokenizer, Path(config.data).expanduser(), config, parallel)
    train_language(network, batches, config, stage, parallel, hooks=[rules, *hooks], loss_fn=rules.watch(loss_fn))
    heldout = parallel.share(PairBatches(pairs, reference, config, heldout=True), network.config.chunk_size)
    measured = measure(network, heldout, loss_fn, parallel) if counts["heldout_pairs"] else {}
    if parallel.first and measured:
        print("dpo: held out, " + ", ".join(f"{name} {value:.3f}" for name, value in measured.items()))
    facts |= {**counts, "heldout": measured, "ended": rules.reason}
    if parallel.first:
        shutil.rmtree(work)
    return save_model(network, tokenizer, stage, parallel, facts=lambda _: facts)


def read_pairs(config: DpoConfig) -> list[Pair]:
    """The pairs that a config names. Raises HerdError where it names none."""
    if config.pairs or config.run:
        found = _from_run(Path(config.run).expanduser()) if config.run else _from_files(config.pairs)
        return [replace(one, heldout=held_out("pairs", prompt_key(one), share=config.heldout)) for one in found]
    if config.data and tables.has(data := Path(config.data).expanduser(), "preferences"):
        return [_pair_of(row) for row in tables.read(data, "preferences")]
    where = f"{config.data} has no preferences" if config.data else "herd dpo needs pairs of answers"
    raise HerdError(f"{where}: give --pairs FILE, --run FOLDER, or a data folder that was built with preferences")


def _from_files(pairs: str) -> list[Pair]:
    notes, path = Notes(), str(Path(pairs).expanduser())
    source = Preferences(PreferenceSource(path=path, name="pairs"), files_of(path, notes), notes)
    found = [Pair(prompt=one.prompt, chosen=one.chosen, rejected=one.rejected, tools=one.tools) for one in source]
    for line in notes.lines():
        print(f"dpo: {line}", flush=True)
    return found


def _from_run(run: Path) -> list[Pair]:
    left_out: Counter[str] = Counter()
    found = [Pair(**row) for row in pair_rows(run, left_out)]
    for what, count in left_out.items():
        print(f"dpo: left out {count:,} {what}", flush=True)
    return found


def _pair_of(row: dict[str, Any]) -> Pair:
    """Of a row of preferences.parquet."""
    said = {name: json.loads(row[name]) for name in ("prompt", "chosen", "rejected")}
    return Pair(**said, tools=json.loads(row["tools"] or "[]"), heldout=row["split"] != "train")


@torch.no_grad()
def measure(
    model: Transformer, batches: Batches[Batch], loss_fn: PreferenceLossFunction, parallel: Parallel
) -> dict[str, float]:
    """The metrics of a preference loss over all batches, as means over their pairs or tokens."""
    device = model.embedding.weight.device
    totals: dict[str, Number | Mean] = {}
    for step in range(batches.num_steps):
        _, metrics = loss_fn(model, to_device(batches.batch(step), device))
        totals = {name: totals[name] + mean if name in totals else mean for name, mean in metrics.items()}  # type: ignore[operator]
    return parallel.total(torch.zeros((), device=device), 0, totals)[2]
