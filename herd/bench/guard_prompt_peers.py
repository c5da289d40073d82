"""What the prompt guard is compared with: linear n-grams on the same public training data, and NanoGuard's wheel.

NanoGuard's tokenizer is a pickle: it is read by an unpickler that knows one class, and its weights by `weights_only`.
"""

# N texts, F features

import io
import itertools
import pickle
import re
import zlib
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from herd.core.streams import stream

Floats = NDArray[np.float64]
BUCKETS = 1 << 18


def _features(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Hashed 2- to 5-grams of characters and 1- and 2-grams of words with log counts, of length 1."""
    low = re.sub(r"\s+", " ", f" {text.lower()} ")[:20_000]
    words = re.findall(r"\w+", low)
    names = [low[at : at + size] for size in (2, 3, 4, 5) for at in range(len(low) - size + 1)]
    names += ["w " + word for word in words] + ["w " + " ".join(pair) for pair in itertools.pairwise(words)]
    hashes = np.array([zlib.crc32(name.encode()) % BUCKETS for name in names], np.int64)
    ids_F, counts_F = np.unique(hashes, return_counts=True)
    values_F = 1 + np.log(counts_F)
    return ids_F, (values_F / np.sqrt((values_F**2).sum() or 1)).astype(np.float32)


class Linear:
    """Logistic regression on hashed n-grams, weighted by inverse document frequency."""

    def __init__(self, texts: Sequence[str], attack: Sequence[bool], *, epochs: int = 6, batch: int = 256) -> None:
        rows = [_features(text) for text in texts]
        seen = np.bincount(np.concatenate([ids for ids, _ in rows]), minlength=BUCKETS)
        self.idf = np.log((1 + len(rows)) / (1 + seen)).astype(np.float32) + 1
        self.weight, self.bias = torch.zeros(BUCKETS, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.Adam([self.weight, self.bias], lr=0.05)
        labels = torch.tensor(attack, dtype=torch.float32)
        for epoch in range(epochs):
            order = stream(0, "linear", epoch).permutation(len(rows))
            for begin in range(0, len(order), batch):
                picked = order[begin : begin + batch]
                loss = functional.binary_cross_entropy_with_logits(
                    self._logits([rows[at] for at in picked]), labels[torch.from_numpy(picked)]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _logits(self, rows: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> torch.Tensor:
        values = []
        for ids_F, value_F in rows:
            weighted = value_F * self.idf[ids_F]
            values.append((weighted / np.sqrt((weighted**2).sum() or 1)).astype(np.float32))
        offsets = np.cumsum([0, *(len(ids) for ids, _ in rows[:-1])])
        return (
            functional.embedding_bag(
                torch.from_numpy(np.concatenate([ids for ids, _ in rows])),
                self.weight,
                torch.from_numpy(offsets),
                mode="sum",
                per_sample_weights=torch.from_numpy(np.concatenate(values)) * 10,
            )[:, 0]
            + self.bias
        )

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> list[float]:
        """P(attack) of each text."""
        found: list[float] = []
        for begin in range(0, len(texts), 256):
            found += self._logits([_features(text) for text in texts[begin : begin + 256]]).sigmoid().tolist()
        return found


class _OneClass(pickle.Unpickler):
    """Knows `tiktoken.core.Encoding` and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a tokenizer")


class NanoGuard:
    """metatronnanoguard 0.1.0, as its own scanner runs it: the first 512 tokens, padded to 512."""

    def __init__(self) -> None:
        model = __import__("nanoguard.model", fromlist=["Classifier"])
        assets = files("nanoguard.assets")
        self.encoding = _OneClass(io.BytesIO(assets.joinpath("tokenizer.pkl").read_bytes())).load()
        self.begin = self.encoding.encode_single_token("<|reserved_0|>")
        self.pad = self.encoding.encode_single_token("<|reserved_1|>")
        # It loads with weights_only=True.
        self.network, _, self.config = model.Classifier.from_checkpoint(str(assets.joinpath("model.pt")))

    @staticmethod
    def reason() -> str:
        """Why it cannot run here; empty where it can."""
        for name in ("nanoguard", "tiktoken"):
            if find_spec(name) is None:
                return f"{name} is not installed: pip install metatronnanoguard==0.1.0"
        return ""

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> list[float]:
        """P(injection) of each text."""
        length, found = self.config.sequence_len, []
        for text in texts:
            ids = [self.begin, *self.encoding.encode_ordinary(text[:20_000])][:length]
            mask = torch.zeros(1, length, dtype=torch.bool)
            mask[0, : len(ids)] = True
            logits = self.network(torch.tensor([ids + [self.pad] * (length - len(ids))]), mask)
            found.append(float(logits.float().softmax(-1)[0, 1]))
        return found
