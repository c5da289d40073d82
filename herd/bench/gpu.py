"""`herd bench gpu`: a CUDA card beside the CPU of the same machine. For a bare machine with one card, within minutes.

Checks: logits and gradients in fp32 against the CPU's; a training in bf16 that is stopped and resumed against one that
is not, in steps with the same loss to the bit; tokens that the engine serves against those of plain forwards. Rates, in
bf16: training, prefill and decoding, beside the CPU. Random weights and tokens; nothing is downloaded or trained well.

Every function takes the device, so that tests run them on a CPU at a minute size.
"""

# N tokens, D width

import os
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from herd.bench.engine_files import tokenizer
from herd.bench.oracles import random_model
from herd.bench.parity import SCOUT_LIKE
from herd.bench.shapes import SHAPES, pack_documents, random_tokens
from herd.bench.table import Row, show
from herd.config import CheckpointConfig, ModelConfig, OptimizerConfig, PretrainConfig
from herd.core.batch import Batch, Images, to_device
from herd.core.device import choose_device
from herd.core.lineage import Stage
from herd.core.tracker import read_metrics
from herd.data.media.image import ImageProcessor
from herd.engine.load import Model
from herd.engine.model import Prompt
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.model.init import first_weights
from herd.model.pack import CPU, pack_sequences
from herd.model.transformer import Transformer
from herd.train.balance import Balancer
from herd.train.loop import train
from herd.train.losses import language_loss
from herd.train.optimizer import Optimizer

PARITY = 1e-5
"""Largest difference of logits, and of a gradient relative to its largest number, that is rounding in fp32."""


SMALL = replace(SCOUT_LIKE, vocab_size=512, num_layers=4, vision=None)
"""The model that is resumed and served."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    text: ModelConfig = SHAPES["M"]
    """The model of the rates."""
    documents: int = 16
    length: int = 1024
    """Of a training step, and `length` of a prefill."""
    steps: int = 10
    """Timed steps of training and of decoding, after two to warm up."""
    sequences: tuple[int, ...] = (1, 32)
    """Decoded at a time."""
    trained_steps: int = 8
    """Of the training that is resumed in its middle."""
    answer_tokens: int = 24
    """Of each served answer that is compared."""


def gpu(*, as_json: bool) -> None:
    """Measure and print; a check that fails is an error."""
    if not torch.cuda.is_available():
        raise HerdError("no CUDA device: herd bench gpu checks a card beside the CPU of the same machine")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products
    rows = [*checks(choose_device("cuda"), Size()), *rates(choose_device("cuda"), Size())]
    show(rows, as_json=as_json)
    if wrong := failed_checks(rows):
        raise HerdError(f"{len(wrong)} of the checks fail: {'; '.join(row.case for row in wrong)}")


def checks(device: torch.device, size: Size) -> list[Row]:
    """What must hold."""
    return [*parity(device), check_resume(device, size), check_engine(device, size)]


def failed_checks(rows: list[Row]) -> list[Row]:
    """The checks, not the rates, that are worse than their bar."""
    return [row for row in rows if row.unit != "tokens/s" and row.ratio < 1]


def random_batch(config: ModelConfig, documents: int, length: int, seed: int) -> Batch:
    """Documents of random tokens, with a picture at the beginning of the first one if the model sees."""
    tokens_N = random_tokens(config.vocab_size, documents * length, seed)
    batch, vision = pack_documents(tokens_N, [length] * documents), config.vision
    if vision is None:
        return batch
    assert config.special.patch is not None
    rows, side = torch.arange(1, 1 + vision.tokens_per_tile), vision.image_size
    tiles = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    tokens_N = batch.tokens_N.index_fill(0, rows, config.special.patch)
    return replace(batch, tokens_N=tokens_N, images=Images(tiles=tiles, rows=rows))


def gradients(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states, and the gradient of every parameter, on the host."""
    batch = to_device(batch, model.embedding.weight.device)
    hidden_ND = model(batch.tokens_N, positions_N=batch.positions_N, starts_S=batch.starts_S, images=batch.images)
    language_loss(0.01)(model, batch)[0].backward()
    found = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return model.unembed(hidden_ND).detach().cpu(), found


def parity(device: torch.device) -> list[Row]:
    """A model with every kind of layer and a picture, in fp32."""
    models = [random_model(SCOUT_LIKE, seed=0, scale=0.1).requires_grad_(True).train() for _ in range(2)]
    batch = random_batch(SCOUT_LIKE, documents=3, length=70, seed=0)
    logits, grads = gradients(models[0], batch)
    other_logits, other_grads = gradients(models[1].to(device), batch)
    forward = float((other_logits - logits).abs().max() / logits.abs().max())
    backward = {
        name: float((other_grads[name] - g).abs().max() / g.abs().max().clamp_min(1e-9)) for name, g in grads.items()
    }
    worst = max(backward, key=lambda name: backward[name])
    return [
        Row(
            case="fp32 logits beside the CPU's",
            unit="largest relative difference",
            ours=forward,
            peer=PARITY,
            peer_name="bar",
        ),
        Row(
            case=f"fp32 gradients beside the CPU's, worst: {worst}",
            unit="largest relative difference",
            ours=backward[worst],
            peer=PARITY,
            peer_name="bar",
        ),
    ]


class RandomBatches:
    """Batch s is a function of s; `stop_at` fails, as a disk that is gone does."""

    unit = "tokens"

    def __init__(self, config: ModelConfig, num_steps: int, stop_at: int | None = None) -> None:
        self.config, self.num_steps, self.stop_at = config, num_steps, stop_at

    def batch(self, step: int) -> Batch:
        if step == self.stop_at:
            raise HerdError(f"stopped at step {step}")
        return random_batch(self.config, documents=2, length=64, seed=step)


def losses(device: torch.device, folder: Path, batches: RandomBatches) -> list[float]:
    """Those of a training in `folder`, begun or resumed there."""
    model = first_weights(batches.config, 0).to(device)
    config = PretrainConfig(checkpoint=CheckpointConfig(every_s=3600.0))
    loss_fn = language_loss(config.balance_coefficient)
    hooks = [Balancer(model, config.bias_update_rate, batches, loss_fn)]
    stage = Stage("gpu", folder, config=config, parents={})
    try:
        train(model, batches, loss_fn, config, stage, hooks=hooks)
    except HerdError:
        if batches.stop_at is None:
            raise
    return [line["loss"] for line in read_metrics(stage.work / "metrics.jsonl")]


def check_resume(device: torch.device, size: Size) -> Row:
    """A training that was stopped and went on, with deterministic operators."""
    config, steps = SMALL, size.trained_steps
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with tempfile.TemporaryDirectory(prefix="herd-bench-") as name:
            folder = Path(name)
            whole = losses(device, folder / "whole", RandomBatches(config, steps))
            losses(device, folder / "torn", RandomBatches(config, steps, stop_at=steps // 2))
            again = losses(device, folder / "torn", RandomBatches(config, steps))
    finally:
        torch.use_deterministic_algorithms(False)
    same = sum(a == b for a, b in zip(whole, again, strict=True))
    return Row(
        case="losses of a resumed training in bf16, equal to the bit",
        unit="steps",
        ours=same,
        peer=steps,
        peer_name="uninterrupted",
        more_is_better=True,
    )


def model_of(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Model:
    """A random model with a tokenizer, as if it had been loaded."""
    words = tokenizer(config.vocab_size)
    config = replace(config, special=words.ids)
    transformer = random_model(config, seed=0, scale=0.1).to(device, dtype)
    return Model(config=config, transformer=transformer, tokenizer=words, processor=ImageProcessor(config.vision))


def prompts_of(config: ModelConfig, lengths: list[int]) -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    return [Prompt(token_ids=torch.randint(10, 250, (n,), generator=generator).tolist()) for n in lengths]


@torch.inference_mode()
def check_engine(device: torch.device, size: Size) -> Row:
    """Greedy answers of requests side by side, each token against a plain forward's of what comes before, in fp32."""
    model = model_of(SMALL, device, torch.float32)
    prompts, same, total = prompts_of(model.config, [1, 17, 40, 75]), 0, 0
    with closing(model.engine(max_num_seqs=3, max_prefill_tokens=32, max_mixed_prefill_tokens=16)) as engine:
        requests = [engine.submit(prompt, SamplingParams(max_tokens=size.answer_tokens)) for prompt in prompts]
        answers = [request.result()[0].token_ids for request in requests]
    for prompt, answer in zip(prompts, answers, strict=True):
        pack = pack_sequences([[*prompt.token_ids, *answer[:-1]]], device=device)
        hidden_ND = model.transformer.forward_packed(pack)[len(prompt.token_ids) - 1 :]
        likeliest = model.transformer.unembed(hidden_ND).argmax(-1).tolist()
        same += sum(a == b for a, b in zip(answer, likeliest, strict=True))
        total += len(answer)
    return Row(
        case="served tokens that are a plain forward's, fp32",
        unit="tokens",
        ours=same,
        peer=total,
        peer_name="plain forward",
        more_is_better=True,
    )


def rates(device: torch.device, size: Size) -> list[Row]:
    """Tokens a second on the device, and on the CPU with just enough tokens to measure it."""
    little = replace(size, documents=min(size.documents, 2), steps=min(size.steps, 2))
    rows = []
    for case, ours, peer in (
        ("training, bf16", training_rate(device, size), training_rate(CPU, little)),
        (f"prefill of {size.length}, bf16", prefill_rate(device, size), prefill_rate(CPU, little)),
        *(
            (f"decoding {count} at a time, bf16", decoding_rate(device, size, count), decoding_rate(CPU, little, count))
            for count in size.sequences
        ),
    ):
        rows.append(Row(case=case, unit="tokens/s", ours=ours, peer=peer, peer_name="the CPU", more_is_better=True))
    return rows


def wait(device: torch.device) -> None:
    """Until all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_rate(device: torch.device, size: Size) -> float:
    """Forward to update."""
    model = first_weights(size.text, 0).to(device).train()
    optimizer, loss_fn = Optimizer(model, OptimizerConfig(), num_steps=1000), language_loss(0.0)
    seconds = []
    for step in range(size.steps + 2):
        batch = random_batch(size.text, size.documents, size.length, seed=step)
        wait(device)
        begin = time.perf_counter()
        loss_fn(model, to_device(batch, device))[0].backward()
        optimizer.step(step, float(optimizer.grad_norm()))
        optimizer.clear()
        wait(device)
        seconds.append(time.perf_counter() - begin)
    return size.documents * size.length / median(seconds[2:])


def serve_random(device: torch.device, size: Size, lengths: list[int], max_tokens: int) -> tuple[int, float]:
    """Tokens of all answers to random prompts, and the seconds that a warm engine takes."""
    model = model_of(size.text, device, torch.bfloat16)
    prompts, params = prompts_of(model.config, lengths), SamplingParams(max_tokens=max_tokens)
    room = max(lengths) + max_tokens
    with closing(model.engine(max_num_seqs=len(lengths), max_model_len=room, max_prefill_tokens=room)) as engine:
        for _ in range(2):  # the first time kernels are loaded
            engine.flush()
            wait(device)
            begin = time.perf_counter()
            requests = [engine.submit(prompt, params) for prompt in prompts]
            tokens = sum(len(request.result()[0].token_ids) for request in requests)
            seconds = time.perf_counter() - begin
    return tokens, seconds


def prefill_rate(device: torch.device, size: Size) -> float:
    """One prompt, and the first token of its answer."""
    return size.length / serve_random(device, size, [size.length], 1)[1]


def decoding_rate(device: torch.device, size: Size, sequences: int) -> float:
    """Behind short prompts, through the whole engine."""
    tokens, seconds = serve_random(device, size, [16] * sequences, 10 * size.steps)
    return tokens / seconds
