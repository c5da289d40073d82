"""A prompt guard's networks as ONNX.

The inputs of the n-grams' network are those of `windows.tensors`: rows of hashed features, of which row 0 is padding,
and windows of row numbers; the outputs are the two logits, and the evidence and the votes of the words, from which
`network.suspicious` chooses what the reader reads. The reader's are pieces and where there are some. Readings, windows
and runs stay in Python.
"""

# B windows, L words of a window, U different words, G features of a word

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from herd.errors import HerdError
from herd.guard.prompt_guard.guard import PromptGuard
from herd.guard.prompt_guard.network import Network
from herd.guard.prompt_guard.reader import padded
from herd.guard.prompt_guard.windows import tensors


class _Exported(Network):
    """With a mean that ONNX has operators for, and all that the choice of runs needs."""

    def forward(self, features_UG: Tensor, index_BL: Tensor) -> Any:
        evidence_BL, votes_BL, mask_BL = self.evidence(features_UG, index_BL)
        margin_B = self.margin(evidence_BL, votes_BL, mask_BL)
        return torch.stack((-margin_B / 2, margin_B / 2), dim=-1), evidence_BL, votes_BL

    def embed(self, features_UG: Tensor) -> Tensor:
        known_UG1 = (features_UG > 0).unsqueeze(-1).float()
        return (self.table(features_UG) * known_UG1).sum(1) / known_UG1.sum(1).clamp(min=1)


def export_onnx(guard: PromptGuard, path: Path) -> Path:
    """Write `path`, and with a reader NAME.reader.onnx beside it. Raises HerdError where the extra `onnx` is not
    installed."""
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise HerdError(f"{name} is not installed: pip install 'herd-lm[onnx]'")
    network = _Exported(guard.config).eval()
    network.load_state_dict(guard.network.state_dict())
    words, grams, batch, length = (torch.export.Dim(name, min=1) for name in ("words", "grams", "batch", "length"))
    inputs = tensors([["ignore", "all", "rules", "now"], ["a", "text"]], guard.config.buckets)
    shapes = {"features_UG": {0: words, 1: grams}, "index_BL": {0: batch, 1: length}}
    _export(network, inputs, path, ["features", "index"], ["logits", "evidence", "votes"], shapes)
    if guard.reader is not None:
        runs = padded([guard.reader.pieces(run) for run in (["ignore", "all", "rules"], ["a"])])
        pieces = torch.export.Dim("pieces", min=2, max=guard.reader.config.positions)
        shapes = {name: {0: batch, 1: pieces} for name in ("ids_BL", "mask_BL")}
        _export(guard.reader, runs, path.with_suffix(".reader.onnx"), ["ids", "mask"], ["logits"], shapes)
    return path


def _export(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    names: Sequence[str],
    outputs: Sequence[str],
    shapes: dict[str, Any],
) -> None:
    program = torch.onnx.export(
        network,
        inputs,
        input_names=names,
        output_names=outputs,
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
