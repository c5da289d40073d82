"""What the reference model says of pairs of answers: read once, and kept until the training is done."""

# N tokens

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from herd.core.batch import to_device
from herd.core.device import send
from herd.core.files import write_atomic
from herd.core.progress import progress_bar
from herd.core.signals import stop_on_signals
from herd.data.loading.pair_batches import NumberedBatch, ReadBatches, TokenPair
from herd.errors import Stopped
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.loop import RESUME
from herd.train.losses import token_logprobs

Logprobs = tuple[np.ndarray, np.ndarray]
"""float32, of the tokens of the chosen and of the rejected answer."""


def reference_logprobs(
    model: Transformer, pairs: Sequence[TokenPair], folder: Path, identity: str, parallel: Parallel = ALONE
) -> list[Logprobs]:
    """The log-probabilities of both answers' tokens of each pair by `model`, as it is now.

    They are kept in `folder`, a file for each batch of pairs, whole or absent: a reading that was stopped goes on where
    it was. Files are named by the tokens and by `identity`, which tells the model and its precision from others. All
    ranks read together. Raises Stopped when asked to stop.
    """
    batches = ReadBatches(pairs)
    shared = parallel.share(batches, model.config.chunk_size)
    device = model.embedding.weight.device
    files = [folder / f"reference-{_key(batches.chunk(step), identity)}.npy" for step in range(batches.num_steps)]
    missing = [step for step, file in enumerate(files) if not file.exists()]
    parallel.mesh.wait()  # all ranks have looked before one writes
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        model.eval()
        with (
            stop_on_signals() as request,
            torch.no_grad(),
            progress_bar("reference", len(files), done=len(files) - len(missing), quiet=not parallel.first) as bar,
        ):
            for step in missing:
                asked = parallel.mesh.sum(
                    torch.tensor([float(bool(request))], device=device), tuple(parallel.mesh.sizes)
                )
                if asked.item():
                    raise Stopped(f"stopped as asked while the reference was read, what was read is kept: {RESUME}")
                logprobs_N = _read(model, shared.batch(step), len(batches.batch(step).tokens_N), parallel)
                if parallel.first:
                    _write(files[step], logprobs_N)
                bar.advance()
        parallel.mesh.wait()
    return [pair for step, file in enumerate(files) for pair in _split(np.load(file), batches.chunk(step))]


def _key(pairs: Sequence[TokenPair], identity: str) -> str:
    digest = hashlib.sha256(identity.encode())
    for pair in pairs:
        for sample in pair.both:
            digest.update(json.dumps([sample.ids.tolist(), sample.learnt.tolist()]).encode())
    return digest.hexdigest()[:24]


def _read(model: Transformer, batch: object, num_tokens: int, parallel: Parallel) -> np.ndarray:
    """The log-probabilities of a batch's answers' tokens in their order, of which this rank reads its part."""
    assert isinstance(batch, NumberedBatch)
    device = model.embedding.weight.device
    there = to_device(batch, device)
    hidden_ND = model(there.tokens_N, positions_N=there.positions_N, starts_S=there.starts_S)
    rows = send(torch.nonzero(batch.weights_N)[:, 0], device)
    logprobs_R = token_logprobs(hidden_ND[rows], model.unembedding.weight, there.targets_N[rows]).float()
    found_2N = torch.zeros(2, num_tokens, device=device)
    found_2N[:, there.numbers_N[rows]] = torch.stack([logprobs_R, torch.ones_like(logprobs_R)])
    logprobs_N, known_N = parallel.mesh.sum(found_2N, tuple(parallel.mesh.sizes)).cpu()
    known: np.ndarray = logprobs_N[known_N != 0].numpy()
    return known


def _write(path: Path, logprobs_R: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, logprobs_R)
    write_atomic(path, buffer.getvalue())


def _split(logprobs_R: np.ndarray, pairs: Sequence[TokenPair]) -> list[Logprobs]:
    """What was read of a batch by pair and answer."""
    counts = [int(sample.learnt[1:].sum()) for pair in pairs for sample in pair.both]
    parts = np.split(logprobs_R, np.cumsum(counts)[:-1])
    return list(zip(parts[::2], parts[1::2], strict=True))
