"""The folder in transformers: the same logits and the same greedy tokens, fp32, with text and pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from herd.config import ModelConfig, MoEConfig, RopeScaling, SpecialIds, preset
from herd.core.batch import Images
from herd.data.media.image import normalise
from herd.engine.load import load
from herd.engine.model import Prompt
from herd.engine.sampler import SamplingParams
from herd.model.formats import huggingface
from herd.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)
SCOUT_SCALING = RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=32)


def small(**changes: object) -> ModelConfig:
    """Chunks of 16 and a temperature that moves early, so that short sequences cross every edge."""
    base = replace(preset("tiny", vocab_size=300, special=SPECIAL), chunk_size=16, temperature_floor=4)
    return replace(base, **changes)  # type: ignore[arg-type]


def random_model(config: ModelConfig, seed: int) -> Transformer:
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        torch.nn.init.normal_(parameter, mean, 0.06, generator=generator)
    return model.eval().requires_grad_(False)


def in_transformers(model: Transformer, folder: Path) -> torch.nn.Module:
    huggingface.save(model, folder, dtype=torch.float32)
    huggingface.save_processor(model.config, folder)
    theirs, info = transformers.Llama4ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return theirs.eval()


@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(num_layers=8, moe=MoEConfig(num_experts=8, ffn_dim=512, every=2)),
        small(moe=MoEConfig(num_experts=4, ffn_dim=64, top_k=2), qk_norm=False),
        small(rope_scaling=SCOUT_SCALING, temperature_tuning=False),
    ],
    ids=["scout-like", "maverick-like", "top-2 without QK norm", "scaled RoPE without temperature"],
)
def test_logits_equal_transformers_across_chunk_edges_with_pictures(config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(config, seed=1)
    theirs = in_transformers(model, tmp_path)
    count, per_tile = 75, config.vision.tokens_per_tile
    ids = torch.randint(10, 300, (count,), generator=torch.Generator().manual_seed(2))
    ids[3 : 3 + per_tile] = ids[40 : 40 + per_tile] = SPECIAL.patch
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    images = Images(tiles=pixels, rows=torch.nonzero(ids == SPECIAL.patch)[:, 0])
    ours = huggingface.load(tmp_path)
    with torch.no_grad():
        hidden = ours(ids, positions_N=torch.arange(count), starts_S=torch.tensor([0, count]), images=images)
        difference = ours.unembed(hidden) - theirs(input_ids=ids[None], pixel_values=pixels).logits[0]
    assert difference.abs().max() <= 1e-5


def test_a_model_of_text_alone_opens_as_a_causal_model_with_the_same_logits(tmp_path: Path) -> None:
    special = SpecialIds(bos=1, end_of_text=2, eom=4, eot=4, pad=5)
    model = random_model(small(vision=None, special=special, nope_every=5), seed=1)
    huggingface.save(model, tmp_path, dtype=torch.float32)
    huggingface.save_processor(model.config, tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert type(theirs).__name__ == "Llama4ForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours = huggingface.load(tmp_path)
    assert ours.config == model.config
    ids = torch.randint(10, 300, (75,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden = ours(ids, positions_N=torch.arange(75), starts_S=torch.tensor([0, 75]))
        difference = ours.unembed(hidden) - theirs(input_ids=ids[None]).logits[0]
    assert difference.abs().max() <= 1e-5


def test_a_packed_document_gives_the_logits_it_gives_alone(tmp_path: Path) -> None:
    model = random_model(small(), seed=4)
    lengths = [5, 33, 1, 64, 17]
    ids = torch.randint(10, 300, (sum(lengths),), generator=torch.Generator().manual_seed(5))
    starts = torch.tensor([0, *np.cumsum(lengths)])
    with torch.no_grad():
        packed = model(ids, positions_N=torch.cat([torch.arange(n) for n in lengths]), starts_S=starts)
        for begin, length in zip(starts.tolist(), lengths, strict=False):
            alone = model(
                ids[begin : begin + length], positions_N=torch.arange(length), starts_S=torch.tensor([0, length])
            )
            assert (packed[begin : begin + length] - alone).abs().max() <= 1e-5


def test_the_training_path_of_attention_equals_the_inference_path() -> None:
    model = random_model(small(), seed=6)
    ids = torch.randint(10, 300, (90,), generator=torch.Generator().manual_seed(7))
    where = {"positions_N": torch.cat([torch.arange(50), torch.arange(40)]), "starts_S": torch.tensor([0, 50, 90])}
    with torch.no_grad():
        inference = model(ids, **where)
    with torch.enable_grad():
        training = model.requires_grad_(True)(ids, **where)
    assert (inference - training).abs().max() <= 1e-5


def test_greedy_tokens_equal_transformers_on_text_and_on_pictures(tiny_folder: Path) -> None:
    model = load(tiny_folder, dtype=torch.float32)
    theirs = transformers.Llama4ForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.float32)
    noise = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    engine = model.engine()
    one = [{"type": "image", "image": picture}, {"type": "text", "text": "the cat"}]
    frames = [{"type": "image", "image": picture.crop((i, 0, i + 60, 60))} for i in range(0, 40, 10)]
    for content in ("der Hund " * 120, one, [*one, *frames, {"type": "text", "text": "sat"}]):
        prompt: Prompt = model.render([{"role": "user", "content": content}])
        pixels = [normalise(tiles.pixels).float() for tiles in prompt.tiles]
        seen = {"pixel_values": torch.cat(pixels)} if pixels else {}
        ids = torch.tensor(prompt.token_ids)[None]
        made = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, **seen
        )[0, ids.shape[1] :]
        wanted = model.tokenizer.decode(made.tolist())
        assert engine.generate_batch([prompt], SamplingParams(max_tokens=40)) == [wanted]
    engine.close()


def test_the_tokenizer_opens_in_transformers_and_renders_the_same_chat(tiny_folder: Path) -> None:
    model = load(tiny_folder)
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    messages = [
        {"role": "system", "content": "  short answers \n"},
        {"role": "user", "content": "der Hund?\n\nthe <|eot|> बिल्ली"},
        {"role": "assistant", "content": "ねこ"},
        {"role": "user", "content": "mat"},
    ]
    plain = [{**m, "content": m["content"].replace("<|eot|>", "")} for m in messages]
    assert theirs.apply_chat_template(plain, add_generation_prompt=True)["input_ids"] == model.render(plain).token_ids
    # A control token that a user spells stays text with us: four messages, four ends of turn.
    assert model.render(messages).token_ids.count(model.tokenizer.special["<|eot|>"]) == len(messages)
