"""Our GGUF in llama.cpp: the same top token at a thousand positions of a thousand, across the edge of a chunk."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folder import random_tokenizer

from herd.bench.oracles import random_model
from herd.config import ModelConfig, MoEConfig, RopeScaling, preset
from herd.core.errors import HerdError
from herd.data.tokenizer import Tokenizer
from herd.model.formats import llama_cpp
from herd.model.formats.gguf import read_gguf
from herd.model.formats.weights import Weights
from herd.model.transformer import Transformer

pytest.importorskip("gguf")

SCALING = RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=8192)
FIRST, COUNT = 7700, 1000
"""Positions that are compared: those from FIRST on; 8192 is among them."""


def small(tokenizer: Tokenizer, **changes: object) -> ModelConfig:
    base = replace(
        preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids),
        dim=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        dense_ffn_dim=96,
        moe=MoEConfig(num_experts=4, ffn_dim=64),
        chunk_size=8192,
        temperature_floor=8192,
        max_positions=16_384,
        rope_scaling=SCALING,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def server(path: Path) -> Any:
    llama = pytest.importorskip("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params = 12_288, 1, False, False
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = min(2, os.cpu_count() or 1)
    params.verbosity = 0
    return llama.Server(params)


def log_probabilities(model: Transformer, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        count = len(ids)
        hidden = model(
            torch.tensor(ids),
            positions_N=torch.arange(count),
            starts_S=torch.tensor([0, count], dtype=torch.int32),
        )
        return model.unembed(hidden[FIRST - 1 : -1]).log_softmax(-1)


def write(model: Transformer, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    tokenizer.save(folder)
    llama_cpp.write_text(Weights.of(model), folder, folder / "m.gguf", dtype=dtype, facts={"stage": "test"})
    return folder / "m.gguf"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="scout-like"),
        pytest.param(
            {
                "moe": MoEConfig(num_experts=128, ffn_dim=32, every=2),
                "qk_norm": False,
                "rope_scaling": None,
                "num_layers": 8,
            },
            id="maverick-like",
            marks=pytest.mark.slow,
        ),
        pytest.param({"moe": MoEConfig(num_experts=6, ffn_dim=64, top_k=2)}, id="top-2", marks=pytest.mark.slow),
    ],
)
def test_llama_cpp_has_our_top_token_at_every_position_across_a_chunk_edge(
    changes: dict[str, object], tmp_path: Path
) -> None:
    tokenizer = random_tokenizer()
    model = random_model(small(tokenizer, **changes), seed=0, scale=0.15)
    theirs = server(write(model, tokenizer, tmp_path))
    vocab = tokenizer.vocab_size
    prompt = torch.randint(0, vocab - 30, (FIRST,), generator=torch.Generator().manual_seed(1)).tolist()
    pieces = [tokenizer.decode([i]) for i in range(vocab)]
    # It tells of no token that ends inside a character: these are never drawn, but their probabilities count.
    never = [
        [i, False] for i, piece in enumerate(pieces) if not piece or not piece.isascii() or not piece.isprintable()
    ]
    answer = theirs.handle_completions(
        {
            "prompt": prompt,
            "n_predict": COUNT,
            "samplers": ["temperature"],
            "temperature": 1.0,
            "seed": 1,
            "n_probs": 1,
            "ignore_eos": True,
            "logit_bias": never,
            "cache_prompt": False,
        }
    )
    told = answer["choices"][0]["logprobs"]["content"]
    assert len(told) == COUNT
    tops = [token["top_logprobs"][0] for token in told]
    ids = prompt + [token["id"] for token in told]
    ours = log_probabilities(model, ids)
    same = sum(int(row.argmax()) == top["id"] for row, top in zip(ours, tops, strict=True))
    assert same == COUNT
    assert max(abs(float(row[top["id"]]) - top["logprob"]) for row, top in zip(ours, tops, strict=True)) <= 2e-3
    # What the edge and the temperature are worth: without them the tops are others, past 8192 and not before.
    model.config = replace(model.config, chunk_size=16_384, temperature=False)
    blind = log_probabilities(model, ids).argmax(-1) != ours.argmax(-1)
    assert not blind[: 8190 - FIRST].any() and blind[8192 - FIRST :].sum() > 50


def test_the_tokenizer_in_the_file_gives_our_ids(tmp_path: Path) -> None:
    import json
    import urllib.request

    tokenizer = random_tokenizer()
    theirs = server(write(random_model(small(tokenizer), seed=0, scale=0.15), tokenizer, tmp_path))
    # Not with combining marks (बिल्ली): its pattern has no \\p{M} and cuts words there (docs/convert.md).
    for text in ("the cat sat on the mat", "der Hund! \n\n  ねこ 12345 I'll", "\tx  \r\n <|eot|> é"):
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(theirs.listening_address + "/tokenize", body)
        with urllib.request.urlopen(request) as reply:
            assert json.load(reply)["tokens"] == tokenizer.encode(text), text


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11), (torch.float32, 0.0)])
def test_what_is_written_is_read_again(dtype: torch.dtype, close: float, tmp_path: Path) -> None:
    tokenizer = random_tokenizer()
    model = random_model(small(tokenizer, moe=MoEConfig(num_experts=4, ffn_dim=64, every=2)), seed=0, scale=0.15)
    metadata, tensors = read_gguf(write(model, tokenizer, tmp_path, dtype))
    read, wanted = dict(tensors), dict(llama_cpp.text_tensors(Weights.of(model)))
    assert read.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(torch.from_numpy(read[name].copy()), tensor, rtol=close, atol=1e-7), name
    assert metadata["general.architecture"] == "llama4"
    assert metadata["tokenizer.ggml.bos_token_id"] == tokenizer.ids.bos
    assert metadata["herd.lineage"] == '{"stage": "test"}'
    assert "<|header_start|>" in metadata["tokenizer.chat_template"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chunk_size": 256}, "chunk_size=256 cannot be told in GGUF: llama.cpp has 8192 in its code"),
        ({"nope_every": 2}, "nope_every=2"),
        ({"temperature": False}, "temperature=False"),
        ({"temperature_floor": 256}, "temperature_floor=256"),
        ({"qk_norm": False}, r"qk_norm \(with 4 experts\)=False"),
        ({"moe": MoEConfig(num_experts=128, ffn_dim=8)}, r"qk_norm \(with 128 experts\)=True"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    tokenizer = random_tokenizer()
    model = random_model(small(tokenizer, **changes), seed=0, scale=0.15)
    with pytest.raises(HerdError, match=reason):
        write(model, tokenizer, tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


def test_weights_beyond_float16_are_named(tmp_path: Path) -> None:
    tokenizer = random_tokenizer()
    model = random_model(small(tokenizer), seed=0, scale=0.15)
    model.layers[2].attention.out.weight[3, 5] = 1e6
    with pytest.raises(HerdError, match=r"blk\.2\.attn_output\.weight has values beyond the range of float16"):
        write(model, tokenizer, tmp_path, torch.float16)
