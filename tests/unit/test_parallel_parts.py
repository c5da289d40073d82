"""What a rank needs of the model: empty packs, and pictures of which a part stands elsewhere."""

import pytest
import torch

from herd.bench.oracles import random_model, random_request
from herd.bench.parity import MAVERICK_LIKE, SCOUT_LIKE
from herd.config import ModelConfig
from herd.core.batch import Images
from herd.train.losses import cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [SCOUT_LIKE, MAVERICK_LIKE])
def test_a_rank_without_tokens_takes_part_and_its_gradients_are_zero(config: ModelConfig, dtype: torch.dtype) -> None:
    model = random_model(config, 0).to(dtype).requires_grad_(True).train()
    none, no_tiles = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, 32, 32)
    images = Images(tiles=no_tiles, rows=none)
    hidden_ND = model(none, positions_N=none, starts_S=torch.zeros(1, dtype=torch.int32), images=images)
    cross_entropy(hidden_ND, model.unembedding.weight, none, torch.zeros(0))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_a_pack_may_hold_a_part_of_a_pictures_tokens() -> None:
    model = random_model(SCOUT_LIKE, 0)
    request = random_request(SCOUT_LIKE, [9, 40], [(1, 1)], seed=1)
    rows = torch.nonzero(request.tokens_N == SCOUT_LIKE.special.patch)[:, 0]
    cut = int(rows[3])
    whole = Images(tiles=request.tiles, rows=rows)
    part = Images(tiles=request.tiles, rows=rows[:3], kept=torch.arange(3))
    positions_N = torch.arange(len(request.tokens_N))
    want_ND = model(
        request.tokens_N, positions_N=positions_N, starts_S=torch.tensor([0, len(positions_N)]), images=whole
    )
    got_ND = model(request.tokens_N[:cut], positions_N=positions_N[:cut], starts_S=torch.tensor([0, cut]), images=part)
    assert torch.allclose(got_ND, want_ND[:cut], atol=1e-5)
