"""The losses that teach the encoder, against their plain statements; the encoder of another model to begin with."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from herd.config import LANGUAGES, VisionStageConfig
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.transformer import Transformer
from herd.stages.vision import contrastive_loss, name_weights, naming_loss, vision


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_naming_loss_is_the_cross_entropy_with_the_bag():
    hidden, unembedding = random(7, 16).requires_grad_(), random(40, 16, seed=1).requires_grad_()
    bag = random(7, 40, seed=2).softmax(-1)
    plain = -(bag * torch.log_softmax(hidden @ unembedding.T, -1)).sum(-1).mean()
    wanted = torch.autograd.grad(plain, (hidden, unembedding))
    ours = naming_loss(hidden, unembedding, bag @ unembedding)
    assert float(ours) == pytest.approx(float(plain), abs=1e-5)
    for given, want in zip(torch.autograd.grad(ours, (hidden, unembedding)), wanted, strict=True):
        assert torch.allclose(given, want, atol=1e-6)


def test_contrastive_loss_of_each_token_against_all_names():
    hidden, names, own = random(5, 2, 8), random(2, 6, 8, seed=1), torch.tensor([0, 3, 3, 5, 1])
    group = torch.tensor([0, 1, 2, 3, 4, 4])  # the last two things have a name in common
    loss, nearest = contrastive_loss(hidden, names, own, group, 2.0)
    plain, hits = [], []
    for picture in range(5):
        allowed = [p for p in range(6) if p == own[picture] or group[p] != group[own[picture]]]
        scores = torch.stack([hidden[picture, token] @ names[token, allowed].T for token in range(2)])
        plain += [-torch.log_softmax(2 * row, -1)[allowed.index(int(own[picture]))] for row in scores]
        hits.append(allowed[int(scores.sum(0).argmax())] == own[picture])
    assert float(loss) == pytest.approx(float(torch.stack(plain).mean()), abs=1e-5)
    assert float(nearest) == pytest.approx(sum(hits) / 5)


def test_each_token_of_a_tile_speaks_for_its_languages():
    first, second, last = LANGUAGES[0], LANGUAGES[1], LANGUAGES[2]
    names = [{first: [3, 4], second: [5]}, {last: [6]}]
    weights = name_weights(names, 10, 2).to_dense().unflatten(0, (2, 2))  # token, thing, vocabulary
    assert weights.sum(-1).tolist() == [[1, 1], [1, 1]]
    assert weights[0, 0, [3, 4]].tolist() == [0.5, 0.5]
    assert weights[1, 0, 5] == 1
    # No name in any of the second token's languages: what it is called in the others.
    assert weights[1, 1, 6] == 1


def test_a_model_begins_with_the_encoder_of_another_width_but_keeps_its_own_projector(tiny_folder, tiny_data, tmp_path):
    theirs = huggingface.load(tiny_folder, dtype=torch.float32)
    wide = Transformer(replace(theirs.config, dim=theirs.config.dim * 2))
    for parameter in wide.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.05)
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    huggingface.save(wide, tmp_path, dtype=torch.float32)
    small = {"num_views": 2, "batch_pictures": 2, "dtype": "float32", "trainable": ("vision.projector.*",)}
    config = VisionStageConfig(encoder=str(tiny_folder), **small)
    out = vision(config, tmp_path, tiny_data, tmp_path / "out")
    assert set(json.loads((out / "herd.json").read_text())["parents"]) == {"model", "data", "encoder"}
    made = huggingface.load(out, dtype=torch.float32).vision
    for name, weight in theirs.vision.named_parameters():
        if not name.startswith("projector."):
            assert torch.equal(made.get_parameter(name), weight.bfloat16().float()), name
    moved = (made.projector.weight - wide.vision.projector.weight).abs().max()
    assert made.projector.weight.shape == (384, 256) and 0 < moved < 0.05  # one step from where it was

    other = replace(theirs.config, vision=replace(theirs.config.vision, num_layers=3))
    shutil.copytree(tiny_folder, tmp_path / "less")
    huggingface.save(Transformer(other), tmp_path / "less", dtype=torch.float32)
    config = VisionStageConfig(encoder=str(tmp_path / "less"), **small)
    with pytest.raises(HerdError, match=r"encoder=.*: its encoder is VisionConfig\(.*num_layers=3"):
        vision(config, tiny_folder, tiny_data, tmp_path / "never")
