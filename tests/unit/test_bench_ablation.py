"""`herd bench ablation` without its trainings: what its variants change, and that what is done is read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from herd.bench.ablation import Variant, ablation, model_of
from herd.config import SpecialIds, preset
from herd.core.files import write_json
from herd.errors import HerdError

SHAPE = replace(
    preset("tiny-long", vocab_size=64, special=SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5)),
    num_layers=1,
    nope_every=1,
)


@pytest.mark.parametrize("rotates", [False, True])
def test_only_a_layer_that_rotates_depends_on_the_order_of_the_past(rotates: bool) -> None:
    model = model_of(Variant(rotates=rotates), SHAPE, 0).float().eval()
    torch.nn.init.normal_(model.layers[0].attention.out.weight, std=0.1)
    tokens_N, positions_N = torch.arange(10, 50), torch.arange(40)
    one_document = {"positions_N": positions_N, "starts_S": torch.tensor([0, 40], dtype=torch.int32)}
    order = torch.cat([torch.randperm(39, generator=torch.Generator().manual_seed(0)), torch.tensor([39])])
    with torch.inference_mode():
        ordered, shuffled = (model(x, **one_document)[-1] for x in (tokens_N, tokens_N[order]))
    assert torch.allclose(ordered, shuffled, atol=1e-4) != rotates


def test_an_unknown_variant_is_refused_and_finished_runs_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("as-it-is-0", "QK-norm-off-0"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "recall.json", {"2048": 0.25 if name[0] == "Q" else 0.75})
    run = {"seeds": 1, "num_tokens": 1, "longest": 2048, "as_json": False}
    ablation(tmp_path, tmp_path, variants=("QK norm off",), **run)  # type: ignore[arg-type]
    assert "0.25" in capsys.readouterr().out
    assert ">25</text>" in (tmp_path / "recall.svg").read_text()
    with pytest.raises(HerdError, match="QK norm off"):
        ablation(tmp_path, tmp_path, variants=("QK norm on",), **run)  # type: ignore[arg-type]
