"""Adapters in PEFT's format: PEFT opens ours on our exported base, and Herd opens PEFT's, with equal logits in fp32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from herd.config import LoraConfig, ModelConfig, MoEConfig, SpecialIds, preset
from herd.model.formats import huggingface, peft
from herd.model.formats.source import find_source
from herd.model.lora import adapters, add_adapters
from herd.model.transformer import Transformer

transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("peft")

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)
TEXT = SpecialIds(bos=1, end_of_text=2, eom=4, eot=4, pad=5)
SMALL = replace(preset("tiny", vocab_size=300, special=SPECIAL), dim=64, num_layers=4, chunk_size=16)
SHAPES = {
    "scout-like with an encoder": replace(SMALL, moe=MoEConfig(num_experts=3, ffn_dim=48)),
    "maverick-like text": replace(
        SMALL, moe=MoEConfig(num_experts=4, ffn_dim=32, every=2), vision=None, special=TEXT, dense_ffn_dim=96
    ),
    "square stacks, one expert": replace(SMALL, moe=MoEConfig(num_experts=1, ffn_dim=32), vision=None, special=TEXT),
}
IDS = torch.randint(10, 300, (40,), generator=torch.Generator().manual_seed(2))


def random_base(config: ModelConfig, folder: Path) -> Transformer:
    generator = torch.Generator().manual_seed(1)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.06, generator=generator)
    huggingface.save(model, folder, dtype=torch.float32)
    huggingface.save_processor(config, folder)
    return model.eval().requires_grad_(False)


def opened(folder: Path, config: ModelConfig) -> Any:
    kind = "Llama4ForConditionalGeneration" if config.vision else "Llama4ForCausalLM"
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(model: Transformer) -> Tensor:
    with torch.no_grad():
        hidden = model(IDS, positions_N=torch.arange(len(IDS)), starts_S=torch.tensor([0, len(IDS)]))
        return model.unembed(hidden)


SLOW = [shape if shape.startswith("scout") else pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES]


@pytest.mark.parametrize("shape", SLOW)
def test_peft_opens_an_adapter_of_ours_with_equal_logits(shape: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    config, lora = SHAPES[shape], LoraConfig(rank=4, alpha=6.0, rslora=shape.startswith("maverick"))
    model = random_base(config, tmp_path / "base")
    plain = logits_of(model)
    add_adapters(model, lora)
    generator = torch.Generator().manual_seed(5)
    values = {}
    for name, parameter in adapters(model):
        values[name] = torch.nn.init.normal_(parameter.detach(), 0.0, 0.2, generator=generator)
    (tmp_path / "adapter").mkdir()
    pairs = peft.from_parameters(config, values, lora.scale)
    peft.write(tmp_path / "adapter", pairs, lora, base=tmp_path / "base", vision=config.vision is not None)
    with_peft = theirs.PeftModel.from_pretrained(opened(tmp_path / "base", config), tmp_path / "adapter").eval()
    trained = {name for name, _ in with_peft.named_parameters() if "lora_" in name}
    assert len(trained) == 2 * len(pairs), "adapters of the encoder, or none where there should be some"
    with torch.no_grad():
        found = with_peft(input_ids=IDS[None]).logits[0]
    ours = logits_of(model)
    assert (ours - plain).abs().max() > 0.1, "the adapters do something"
    assert (ours - found).abs().max() <= 1e-5
    merged = find_source(tmp_path / "adapter").transformer()
    assert (logits_of(merged) - ours).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", SLOW)
@pytest.mark.parametrize(
    "settings",
    [
        {
            "target_modules": ["q_proj", "v_proj", "o_proj", "shared_expert.down_proj", "up_proj"],
            "target_parameters": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"],
            "alpha_pattern": {r"self_attn\.q_proj": 20, "experts.down_proj": 3},
            "rank_pattern": {"v_proj": 3},
        },
        pytest.param(
            {"target_modules": [], "target_parameters": ["experts.gate_up_proj"], "use_rslora": True},
            marks=pytest.mark.slow,
        ),
        pytest.param({"target_modules": [], "target_parameters": ["experts.down_proj"]}, marks=pytest.mark.slow),
    ],
    ids=["patterns", "gate and up with rsLoRA", "down"],
)
def test_an_adapter_of_pefts_opens_here_with_equal_logits(shape: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = SHAPES[shape]
    (tmp_path / "base").mkdir()
    random_base(config, tmp_path / "base")
    torch.manual_seed(0)
    wanted = theirs.LoraConfig(r=2, lora_alpha=5, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    with_peft = theirs.get_peft_model(opened(tmp_path / "base", config), wanted).eval()
    with torch.no_grad():
        for name, parameter in with_peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, 0.0, 0.2)
        found = with_peft(input_ids=IDS[None]).logits[0]
    with_peft.save_pretrained(tmp_path / "adapter")
    merged = find_source(tmp_path / "adapter", base=tmp_path / "base").transformer()
    plain = find_source(tmp_path / "base").transformer()
    assert (logits_of(plain) - found).abs().max() > 0.05
    assert (logits_of(merged) - found).abs().max() <= 1e-5
