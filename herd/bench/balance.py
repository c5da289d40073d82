"""`herd bench balance`: how even the experts' load is over a run on real text, at 16 and at 128 experts.

Small models of text alone are pre-trained by the stage itself, each twice: by biases, and by the auxiliary loss of
Switch Transformer as the peer. Rows: MaxVio of the load summed over all steps after the warm-up (the paper's
MaxVio_global, of the worst layer), of single steps, of the folder that was written, on held-out text where nothing
adapts; that folder's loss on held-out text; and experts that got nothing. Each run is an ordinary stage's folder under
`out`: one that was stopped resumes from its checkpoint, one that is done is read.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from herd.bench.table import Row, show
from herd.config import ModelConfig, MoEConfig, PretrainConfig, preset
from herd.core.batch import Batch
from herd.core.streams import stream
from herd.core.tracker import read_metrics
from herd.data.loading import tables
from herd.data.loading.pack import Sample, pack, steps_of
from herd.data.tokens.tokenizer import Tokenizer
from herd.evaluate.load import expert_counts, load_facts, violation
from herd.model.formats import huggingface
from herd.model.init import first_weights
from herd.stages.pretrain import pretrain
from herd.train.balance import mixtures
from herd.train.losses import language_loss

BATCH_TOKENS, CONTEXT = 4096, 512
FFN_DIM = {16: 128, 128: 32}
"""Hidden width of an expert, by their number."""
HELDOUT_STEPS = 24
MODES: dict[str, dict[str, float]] = {"bias": {}, "loss": {"bias_update_rate": 0.0, "balance_coefficient": 0.01}}
"""What each changes of the stage's settings."""


def shape_of(experts: int, tokenizer: Tokenizer) -> ModelConfig:
    """Four layers of width 128, a mixture in each, of text alone."""
    moe = MoEConfig(num_experts=experts, ffn_dim=FFN_DIM.get(experts, 128))
    shape = preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
    return replace(shape, dim=128, num_heads=2, num_kv_heads=1, moe=moe, vision=None)


def new_model(experts: int, data: Path, out: Path) -> Path:
    """A model folder with first weights."""
    tokenizer = Tokenizer.load(data / "tokenizer")
    model = first_weights(shape_of(experts, tokenizer), seed=0)
    out.mkdir(parents=True, exist_ok=True)
    huggingface.save(model, out)
    huggingface.save_processor(model.config, out)
    tokenizer.save(out)
    return out


def heldout_batches(data: Path, tokenizer: Tokenizer) -> list[Batch]:
    """Pieces of held-out documents in a random order."""
    texts = [row["text"] for row in tables.read(data, "text", ["split", "text"]) if row["split"] == "heldout"]
    pieces = []
    for tokens in tokenizer.encode_batch(texts):
        ids = np.array([tokenizer.ids.bos, *tokens, tokenizer.ids.end_of_text])
        pieces += [ids[begin : begin + CONTEXT] for begin in range(0, len(ids) - 1, CONTEXT)]
    pieces = [pieces[index] for index in stream(0, "heldout").permutation(len(pieces))]
    steps = steps_of(np.array([len(piece) for piece in pieces]), BATCH_TOKENS)[:HELDOUT_STEPS]
    return [
        pack(
            [Sample(ids=pieces[i], learnt=np.ones(len(pieces[i]), dtype=bool), kind="text") for i in step],
            patch_id=tokenizer.special["<|patch|>"],
        )
        for step in steps
    ]


@torch.no_grad()
def measure(folder: Path, batches: list[Batch]) -> dict[str, float]:
    """Loss of a finished folder on `batches`, and the MaxVio of its routing there: as it opens everywhere."""
    model, loss_fn = huggingface.load(folder, dtype=torch.bfloat16).train(), language_loss(0.0)  # in training it counts
    losses, weights = [], []
    for batch in batches:
        losses.append(loss_fn(model, batch)[1]["loss"])
        weights.append(int((batch.weights_N > 0).sum()))
    counts = [moe.count_E.tolist() for moe in mixtures(model) if moe.count_E is not None]
    loss = np.average(np.array(losses, dtype=float), weights=weights)
    return {"held_loss": float(loss), "held_vio": violation(np.array([counts], dtype=float))}


def train_run(experts: int, mode: str, data: Path, out: Path, *, num_steps: int) -> dict[str, float]:
    """Train or find one run, and measure it."""
    folder = out / f"{experts}-{mode}"
    if not folder.exists():
        model = new_model(experts, data, out / f"{experts}-new")
        config = PretrainConfig(
            num_tokens=BATCH_TOKENS * num_steps, batch_tokens=BATCH_TOKENS, context=CONTEXT, picture_share=0.0
        )
        pretrain(replace(config, **MODES[mode]), model, data, folder)  # type: ignore[arg-type]
    _, count_TLE = expert_counts(read_metrics(folder / "metrics.jsonl"))
    held = measure(folder, heldout_batches(data, Tokenizer.load(data / "tokenizer")))
    return load_facts(count_TLE) | held


def balance(data: Path, out: Path, *, experts: Sequence[int], num_steps: int, as_json: bool) -> None:
    """Run and print."""
    rows = []
    for number in experts:
        ours, peer = (train_run(number, mode, data, out, num_steps=num_steps) for mode in MODES)
        lottery = {"vio": ours["vio_lottery"], "step": ours["step_lottery"]}
        for case, unit, key in (
            ("MaxVio over all steps", "share", "vio"),
            ("MaxVio of a step", "share", "step"),
            ("experts without a token", "experts", "dead"),
            ("the folder: held-out loss", "nats", "held_loss"),
            ("the folder: MaxVio held out", "share", "held_vio"),
        ):
            for name, figures in (("auxiliary loss 0.01", peer), ("an even lottery", lottery)):
                if key in figures:
                    case_of = f"{number} experts: {case}"
                    rows.append(Row(case=case_of, unit=unit, ours=ours[key], peer=figures[key], peer_name=name))
    show(rows, as_json=as_json)
