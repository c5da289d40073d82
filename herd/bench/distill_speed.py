"""What teaching and distillation cost: a teacher's reading beside the engine's, a student's step beside a plain one.

The engine reads the same pieces of the training text as prompts, once as it does for an answer (the logits of the last
token alone), once with the log-probability of every token, which needs the same product over the vocabulary that
teaching needs. Steps are those of one model on the same batches, with and without a teacher's rows. All alternate in
one run; the median of the rounds counts.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from herd.bench.table import Row
from herd.config import DistillConfig, PretrainConfig
from herd.core.batch import Batch
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.taught_batches import TaughtBatch
from herd.engine.load import load
from herd.engine.model import Prompt
from herd.engine.sampler import SamplingParams
from herd.train.distillation import distillation_loss
from herd.train.losses import language_loss
from herd.train.teacher import Teacher

CONTEXT, STEP_TOKENS, STEPS, DRAWS = 256, 6144, 3, 12


def speed_rows(model_folder: Path, data: Path, *, rounds: int) -> list[Row]:
    """Tokens a second of reading, and seconds of a step."""
    model = load(model_folder)
    plan = PretrainConfig(num_tokens=STEP_TOKENS * STEPS, batch_tokens=STEP_TOKENS, context=CONTEXT, picture_share=0.0)
    student = PretrainBatches(data, plan, model.tokenizer, model.processor)
    batches = [student.batch(step) for step in range(student.num_steps)]
    teacher = Teacher(model.transformer)
    tokens = sum(len(batch.tokens_N) for batch in batches)
    with closing(model.engine(max_num_seqs=64, max_prefill_tokens=STEP_TOKENS)) as engine:

        def read(*, logprobs: bool) -> None:
            engine.flush()
            params = SamplingParams(max_tokens=1, prompt_logprobs=logprobs)
            requests = [engine.submit(prompt, params) for batch in batches for prompt in prompts(batch)]
            for request in requests:
                request.result()

        cases: dict[str, Callable[[], None]] = {
            "teach": lambda: taught(teacher, batches),
            "engine": lambda: read(logprobs=False),
            "engine, every token": lambda: read(logprobs=True),
        }
        seconds = alternate(cases, rounds)
    rate = {name: tokens / one for name, one in seconds.items()}
    rows = [
        Row(case=f"reading {CONTEXT}-token pieces", unit="tokens/s", ours=rate["teach"], peer=rate[name],
            peer_name=name, more_is_better=True)
        for name in ("engine", "engine, every token")
    ]  # fmt: skip
    network = load(model_folder).transformer.requires_grad_(True).train()
    plain, soft = language_loss(0.0), distillation_loss(DistillConfig(confidence=True))
    with_rows = [add_rows(batch, model.config.vocab_size) for batch in batches]

    def step(loss_fn: Callable[..., tuple[torch.Tensor, object]], made: list[Batch]) -> None:
        for batch in made:
            loss_fn(network, batch)[0].backward()
            network.zero_grad(set_to_none=True)

    steps: dict[str, Callable[[], None]] = {
        "soft": lambda: step(soft, with_rows),
        "plain": lambda: step(plain, batches),
    }
    seconds = alternate(steps, rounds)
    rows.append(
        Row(case="forward and backward", unit="s/step", ours=seconds["soft"] / len(batches),
            peer=seconds["plain"] / len(batches), peer_name="plain pre-training")
    )  # fmt: skip
    return rows


def alternate(cases: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each case; the first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begin = time.perf_counter()
            cases[name]()
            found[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def prompts(batch: Batch) -> list[Prompt]:
    """The documents of a batch."""
    starts = batch.starts_S.tolist()
    ids = batch.tokens_N.tolist()
    return [Prompt(token_ids=ids[begin:end]) for begin, end in pairwise(starts)]


def taught(teacher: Teacher, batches: list[Batch]) -> None:
    """Read every token as `herd teach` does."""
    for batch in batches:
        whole = replace(batch, weights_N=torch.ones_like(batch.weights_N))
        teacher.rows(whole, torch.rand(len(whole.tokens_N), DRAWS, dtype=torch.float64))


def add_rows(batch: Batch, vocab_size: int) -> Batch:
    """Any rows: they cost as much as a teacher's."""
    size = len(batch.tokens_N)
    return TaughtBatch(
        **vars(batch),
        draws_NK=torch.randint(0, vocab_size, (size, DRAWS)),
        teacher_logprobs_N=torch.full((size,), -2.0),
        alpha=0.9,
    )
