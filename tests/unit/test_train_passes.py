"""Masters in two parts and moments in 8 bits, against fp32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.config import OptimizerConfig, SpecialIds, preset
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train import passes
from herd.train.optimizer import Optimizer

SPECIAL = SpecialIds(**dict.fromkeys(SpecialIds.__dataclass_fields__, 0))


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_master_is_kept_to_the_bit_and_its_weight_is_the_nearest(value: float) -> None:
    master, weight, low_bits = torch.tensor([value]), torch.zeros(1).bfloat16(), torch.zeros(1, dtype=torch.int16)
    passes.write_master(weight, low_bits, master)
    assert torch.equal(passes.read_master(weight, low_bits), master)
    exact, nearest = master.double(), master.bfloat16().double()
    if nearest.isfinite().all():
        assert (weight.double() - exact).abs() <= (nearest - exact).abs()


def test_codes_of_8_bits_are_true_on_the_mean_and_near_each_time() -> None:
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 600).view(3, 200)
    for fraction, values in ((3, x), (4, x.abs())):
        code, scale_b, reported = torch.zeros(3, 200, dtype=torch.uint8), torch.zeros(5), []
        for seed in range(400):
            noise = passes.noise(600, seed, x.device)
            passes.encode(values, code, scale_b, fraction, noise & 0xFFFFF if fraction == 3 else noise >> 13)
            reported.append(passes.decode(code, scale_b, fraction))
        seen = torch.stack(reported)
        top = passes.blocks(values).abs().amax(-1, keepdim=True).expand(-1, 128).flatten()[:600].view(3, 200)
        assert ((seen - values).abs() <= values.abs() * 2.0**-fraction + top * 2.0**-14).all()
        assert ((seen.mean(0) - values).abs() <= values.abs() * 2.0**-fraction / 8 + top * 2.0**-14).all()


@pytest.mark.parametrize("moments", ["fp32", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_for_all_follows_torchs_own(moments: str, dtype: torch.dtype) -> None:
    model = Transformer(preset("tiny", vocab_size=64, special=SPECIAL)).to(dtype)
    initialise(model, torch.Generator().manual_seed(0))
    rates = dict.fromkeys(("adamw_lr", "embedding_lr", "unembedding_lr", "other_lr"), 0.002)
    config = OptimizerConfig(matrix="adamw", moments=moments, warmup_ratio=0, decay=0, max_grad_norm=1e9, **rates)  # type: ignore[arg-type]
    ours = Optimizer(model, config, 100)
    before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
    theirs = {name: p.clone().requires_grad_() for name, p in before.items()}

    def decays(name: str) -> bool:
        """Matrices do; norms, biases, positions and the embedding do not."""
        return not name.startswith("embedding") and "positions" not in name and theirs[name].ndim > 1

    groups = [
        {"params": [p for name, p in theirs.items() if decays(name) == decay], "weight_decay": 0.01 * decay}
        for decay in (True, False)
    ]
    adamw = torch.optim.AdamW(groups, lr=0.002, betas=config.betas, eps=1e-10)
    for step in range(6):
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            parameter.grad = (noise + 0.5).to(dtype)
            theirs[name].grad = parameter.grad.float()
        ours.step(step, float(ours.grad_norm()))
        adamw.step()
    for name in theirs:
        # Compared by how far it went; codes of 8 bits err by some hundredths, and by chance.
        one = ours.trained[name]
        master = passes.read_master(one.weight, one.low_bits)
        went, expected = (x.detach().float() - before[name] for x in (master, theirs[name]))
        limit = 1e-3 if moments == "fp32" or "scales" not in one.moments else 0.06
        assert (went - expected).norm() < limit * expected.norm(), name
