"""How likely texts are, and vectors of them: packed forwards without generation."""

# N tokens, D width, V vocabulary

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from herd.core.batch import Images
from herd.core.device import send
from herd.engine.model import LoadedModel, Prompt
from herd.model.cache import Slots, chunk_pieces
from herd.model.pack import pack_sequences

PACK_TOKENS = 8192
"""Tokens of one forward."""
LOGIT_ROWS = 128
"""Tokens whose logits exist at one time: few enough to stay in a core's cache."""


@torch.inference_mode()
def _losses(model: LoadedModel, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """Nats of every token but the first of each prompt, in one packed forward."""
    pack = pack_sequences([prompt.token_ids for prompt in prompts], device=model.device)
    tokens_N = pack.tokens_N
    hidden_ND = model.transformer.forward_packed(pack, images=model.encode(prompts))
    parts: list[Tensor] = []
    for begin in range(0, len(tokens_N) - 1, LOGIT_ROWS):
        target = tokens_N[begin + 1 : begin + 1 + LOGIT_ROWS]
        logits_NV = model.transformer.unembed(hidden_ND[begin : begin + len(target)]).float()
        parts.append(torch.logsumexp(logits_NV, -1) - logits_NV.gather(1, target[:, None])[:, 0])
    losses = torch.cat(parts).cpu().numpy() if parts else np.zeros(0, dtype=np.float32)
    starts = pack.starts_S.tolist()
    return [losses[begin : begin + length - 1] for begin, length in zip(starts, pack.lengths, strict=False)]


def _packs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in packs of about PACK_TOKENS, longest first."""
    pack: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if pack and total + lengths[index] > PACK_TOKENS:
            yield pack
            pack, total = [], 0
        pack.append(index)
        total += lengths[index]
    if pack:
        yield pack


@torch.inference_mode()
def mean_pooled(model: LoadedModel, prompt: Prompt) -> list[float]:
    """A unit vector [D]: the mean of the last layer's hidden states over all tokens.

    Nothing trained it to compare texts.
    """
    pack = pack_sequences([prompt.token_ids], device=model.device)
    hidden_ND = model.transformer.forward_packed(pack, images=model.encode([prompt]))
    vector: list[float] = torch.nn.functional.normalize(hidden_ND.float().mean(0), dim=0).tolist()
    return vector


def prompt_losses(model: LoadedModel, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """Nats of every token but the first of each prompt, pictures too."""
    scored: dict[int, np.ndarray] = {}
    for pack in _packs([len(prompt.token_ids) for prompt in prompts]):
        scored |= zip(pack, _losses(model, [prompts[i] for i in pack]), strict=True)
    return [scored[i] for i in range(len(prompts))]


@torch.inference_mode()
def log_likelihoods(model: LoadedModel, items: Sequence[tuple[Prompt, list[int]]]) -> list[float]:
    """Natural-log probability of each continuation given its prompt.

    Neighbouring items with the same prompt object read it once: give all continuations of a prompt together.
    """
    result: list[float] = []
    for _, group in groupby(items, key=lambda item: id(item[0])):
        chosen = list(group)
        result += _continuations(model, chosen[0][0], [more for _, more in chosen])
    return result


def _continuations(model: LoadedModel, prompt: Prompt, continuations: list[list[int]]) -> list[float]:
    """Log-probabilities of continuations of one prompt, over one reading of it."""
    network, config = model.transformer, model.config
    length, longest = len(prompt.token_ids), max(map(len, continuations))
    weight = network.embedding.weight  # the unembedding may be packed
    cache = Slots(
        config, num_slots=len(continuations), capacity=length + longest, dtype=weight.dtype, device=weight.device
    )
    features = model.encode([prompt])

    def forward(slots: list[int], runs: list[list[int]], begin: int, images: Images | None) -> Tensor:
        pack = pack_sequences(runs, num_cached=[begin] * len(runs), device=model.device)
        return network.forward_packed(pack, images=images, cache=cache.view(pack, slots))

    patches = model.patch_rows(prompt)
    for begin, end in chunk_pieces(0, length, config.chunk_size, PACK_TOKENS):
        images = None
        inside = torch.nonzero((patches >= begin) & (patches < end))[:, 0]
        if features is not None and len(inside):
            here = send(inside, model.device)
            images = Images(tiles=features.tiles[here], rows=features.rows[here] - begin, encoded=True)
        hidden_ND = forward([0], [prompt.token_ids[begin:end]], begin, images)
    first_V = torch.log_softmax(network.unembed(hidden_ND[-1:])[0].float(), -1)
    scores: list[float] = first_V[send(torch.tensor([more[0] for more in continuations]), model.device)].tolist()
    cache.copy_slot(0)
    for begin, end in chunk_pieces(length, length + longest - 1, config.chunk_size, PACK_TOKENS):
        # Each run predicts the token after every one that it reads, so the last token is never read.
        slots = [i for i, more in enumerate(continuations) if length + len(more) - 1 > begin]
        runs = [continuations[i][begin - length : min(end - length, len(continuations[i]) - 1)] for i in slots]
        log_NV = torch.log_softmax(network.unembed(forward(slots, runs, begin, None)).float(), -1)
        targets = [continuations[i][begin - length + 1 :][: len(run)] for i, run in zip(slots, runs, strict=True)]
        targets_N = send(torch.tensor([token for part in targets for token in part]), model.device)
        log_N = log_NV.gather(1, targets_N[:, None])[:, 0]
        for i, score in zip(
            slots, torch.stack([x.sum() for x in log_N.split([*map(len, runs)])]).tolist(), strict=True
        ):
            scores[i] += score
    return scores


def token_losses(model: LoadedModel, documents: Sequence[list[int]], *, context: int = 512) -> list[np.ndarray]:
    """Nats of each token of each document (ids without begin-of-text, which is put before the first).

    A document longer than `context` is read in windows that overlap by half, and a token is scored in the window that
    shows it the longer past.
    """
    bos = model.config.special.bos
    stride = context // 2
    windows: list[tuple[int, list[int], int]] = []  # document, ids, tokens already scored before
    for index, document in enumerate(documents):
        ids = [bos, *document]
        begin = 0
        while True:
            windows.append((index, ids[begin : begin + context], 0 if begin == 0 else context - stride - 1))
            if begin + context >= len(ids):
                break
            begin += stride
    result: list[list[np.ndarray]] = [[] for _ in documents]
    scored = prompt_losses(model, [Prompt(token_ids=ids) for _, ids, _ in windows])
    for (index, _, known), losses in zip(windows, scored, strict=True):
        result[index].append(losses[known:])
    return [np.concatenate(parts) if parts else np.zeros(0) for parts in result]
