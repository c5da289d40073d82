"""A prompt guard's network as ONNX.

The inputs are those of `windows.tensors`: rows of hashed features, of which row 0 is padding, and windows of row
numbers; the output is the two logits. Readings and windows stay in Python.
"""

# B windows, L words of a window, U different words, G features of a word

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from herd.errors import HerdError
from herd.guard.prompt_guard.guard import PromptGuard
from herd.guard.prompt_guard.network import Network
from herd.guard.prompt_guard.windows import tensors


class _Exported(Network):
    """With a mean that ONNX has operators for."""

    def embed(self, features_UG: Tensor) -> Tensor:
        known_UG1 = (features_UG > 0).unsqueeze(-1).float()
        return (self.table(features_UG) * known_UG1).sum(1) / known_UG1.sum(1).clamp(min=1)


def export_onnx(guard: PromptGuard, path: Path) -> Path:
    """Write `path`. Raises HerdError where the extra `onnx` is not installed."""
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise HerdError(f"{name} is not installed: pip install 'herd-lm[onnx]'")
    network = _Exported(guard.config).eval()
    network.load_state_dict(guard.network.state_dict())
    features_UG, index_BL = tensors([["ignore", "all", "rules", "now"], ["a", "text"]], guard.config.buckets)
    words, grams, batch, length = (torch.export.Dim(name, min=1) for name in ("words", "grams", "batch", "length"))
    program = torch.onnx.export(
        network,
        (features_UG, index_BL),
        input_names=["features", "index"],
        output_names=["logits"],
        dynamic_shapes={"features_UG": {0: words, 1: grams}, "index_BL": {0: batch, 1: length}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    return path
