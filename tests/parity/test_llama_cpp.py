"""Our GGUF in llama.cpp, and llama.cpp's here: the same top tokens, across the edge of a chunk and in its types."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folder import random_tokenizer

import herd
from herd.bench.oracles import random_model
from herd.cli import main
from herd.config import ModelConfig, MoEConfig, RopeScaling, preset
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.formats import llama_cpp
from herd.model.formats.gguf import read_gguf, read_header
from herd.model.formats.llama_cpp_file import LlamaCppFile
from herd.model.formats.weights import Weights
from herd.model.transformer import Transformer

pytest.importorskip("gguf")

SCALING = RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=8192)
FIRST, COUNT = 7700, 750
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
    params.cpuparams.n_threads = 1  # several wait for each other by spinning, for minutes on a busy machine
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
    llama_cpp.write_text(
        Weights.of(model),
        tokenizer.document,
        folder / "m.gguf",
        dtype=dtype,
        facts={"stage": "test"},
        template=tokenizer.chat_template,
    )
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
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, tokenizer.vocab_size - 30, (FIRST,), generator=generator).tolist()
    reported = continued(theirs, tokenizer, prompt, COUNT, samplers=["temperature"], temperature=1.0, seed=1)
    ids = prompt + [token for token, _, _ in reported]
    ours = log_probabilities(model, ids)
    assert ours.argmax(-1).tolist() == [top for _, top, _ in reported]
    assert max(abs(float(row[top]) - value) for row, (_, top, value) in zip(ours, reported, strict=True)) <= 2e-3
    # What the edge and the temperature are worth: without them the tops are others, past 8192 and not before.
    model.config = replace(model.config, chunk_size=16_384, temperature_tuning=False)
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


def continued(
    theirs: Any, tokenizer: Tokenizer, prompt: list[int], count: int, **sampling: object
) -> list[tuple[int, int, float]]:
    """What llama.cpp adds to `prompt`: each token, the likeliest one there, and the log-probability of that."""
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    # It reports no token that ends inside a character: these are never drawn, but their probabilities count.
    never = [
        [i, False] for i, piece in enumerate(pieces) if not piece or not piece.isascii() or not piece.isprintable()
    ]
    answer = theirs.handle_completions(
        {
            "prompt": prompt,
            "n_predict": count,
            "n_probs": 1,
            "ignore_eos": True,
            "logit_bias": never,
            "cache_prompt": False,
            **sampling,
        }
    )
    reported = answer["choices"][0]["logprobs"]["content"]
    assert len(reported) == count
    tops = [token["top_logprobs"][0] for token in reported]
    return [(token["id"], top["id"], top["logprob"]) for token, top in zip(reported, tops, strict=True)]


def logits_of(model: Transformer, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        starts = torch.tensor([0, len(ids)], dtype=torch.int32)
        return model.unembed(model(torch.tensor(ids), positions_N=torch.arange(len(ids)), starts_S=starts))


def same_answer(model: Transformer, theirs: Any, tokenizer: Tokenizer, prompt: list[int], count: int) -> None:
    """The likeliest tokens after `prompt` are llama.cpp's, and log-probabilities nearly."""
    reported = continued(theirs, tokenizer, prompt, count, temperature=0.0)
    rows = logits_of(model, prompt + [token for token, _, _ in reported[:-1]])[-count:].log_softmax(-1)
    assert rows.argmax(-1).tolist() == [top for _, top, _ in reported]
    assert max(abs(float(row[top]) - value) for row, (_, top, value) in zip(rows, reported, strict=True)) < 2e-3


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        pytest.param({"chunk_size": 64, "temperature_floor": 64}, 63, id="tiny-like"),
        pytest.param({"chunk_size": 48}, 48, id="chunk"),
        pytest.param({"temperature_floor": 80}, 79, id="temperature"),
        pytest.param({"temperature_tuning": False}, 8191, id="no temperature"),
        pytest.param({"temperature_tuning": False, "max_positions": 4096}, 4096, id="short claim"),
    ],
)
def test_a_model_of_other_chunks_is_written_with_the_context_in_which_it_is_the_same(
    changes: dict[str, object], context: int, tmp_path: Path
) -> None:
    tokenizer = random_tokenizer()
    model = random_model(small(tokenizer, **changes), seed=0, scale=0.15)
    path = write(model, tokenizer, tmp_path)
    metadata, _ = read_header(path)
    assert metadata["llama4.context_length"] == context
    if context < 100:
        prompt = torch.randint(0, 300, (context - 12,), generator=torch.Generator().manual_seed(1)).tolist()
        same_answer(model, server(path), tokenizer, prompt, 12)


def test_an_adopted_dense_model_is_the_same_as_a_dense_llama(tmp_path: Path) -> None:
    tokenizer = random_tokenizer()
    shape = small(
        tokenizer,
        nope_every=9,
        qk_norm=False,
        temperature_tuning=False,
        moe=MoEConfig(num_experts=1, ffn_dim=96),
        chunk_size=2048,
        max_positions=2048,
        vocab_size=tokenizer.vocab_size + 5,  # rows to spare
    )
    model = random_model(shape, seed=0, scale=0.15)
    with pytest.raises(HerdError, match="nope_every=9 has no form in GGUF"):
        write(model, tokenizer, tmp_path)
    for layer in model.layers:
        layer.ffn.down_EFD.zero_()  # what a newly adopted model's routed expert is
    path = write(model, tokenizer, tmp_path)
    metadata, entries = read_header(path)
    assert (metadata["general.architecture"], metadata["llama.context_length"]) == ("llama", 2048)
    assert not [entry.name for entry in entries if "exps" in entry.name or "gate_inp" in entry.name]
    prompt = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    same_answer(model, server(path), tokenizer, prompt, 24)
    with pytest.raises(HerdError, match=r"is a dense Llama, not Llama 4: .*`herd adopt m.gguf FOLDER`"):
        herd.load(path)


def rewritten(source: Path, target: Path, kind: str, changes: Mapping[str, object] | None = None) -> Path:
    """A GGUF as llama-quantize writes it, by llama.cpp's own ggml_quantize_chunk: matrices of `kind`, output Q6_K."""
    import ctypes

    import gguf
    import numpy as np

    library = ctypes.CDLL(pytest.importorskip("xllamacpp").xllamacpp.__file__)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama4")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = (changes or {}).get(field.name, field.contents())
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(
            field.name, value, gguf.GGUFValueType.ARRAY if isinstance(value, list) else field.types[0], sub_type=inner
        )
    for tensor in reader.tensors:
        data = np.ascontiguousarray(tensor.data, np.float32)
        if data.ndim == 1 or "ffn_gate_inp" in tensor.name:
            writer.add_tensor(tensor.name, data)
            continue
        chosen = gguf.GGMLQuantizationType["Q6_K" if tensor.name == "output.weight" and kind.endswith("K") else kind]
        block, size = gguf.GGML_QUANT_SIZES[chosen]
        packed = np.zeros((*data.shape[:-1], data.shape[-1] // block * size), np.uint8)
        pointer = ctypes.c_void_p
        library.ggml_quantize_chunk(
            ctypes.c_int(chosen.value),
            data.ctypes.data_as(pointer),
            packed.ctypes.data_as(pointer),
            ctypes.c_int64(0),
            ctypes.c_int64(data.size // data.shape[-1]),
            ctypes.c_int64(data.shape[-1]),
            None,
        )
        writer.add_tensor(tensor.name, packed, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


WIDE = {"dim": 256, "moe": MoEConfig(num_experts=2, ffn_dim=256, every=2), "dense_ffn_dim": 256, "head_dim": 64}


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q8_0", "Q4_0", "IQ4_XS"])
def test_a_gguf_of_few_bits_opens_as_the_numbers_that_llama_cpp_multiplies_by(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = random_tokenizer()
    model = random_model(small(tokenizer, **WIDE), seed=0, scale=0.08)
    path = rewritten(write(model, tokenizer, tmp_path), tmp_path / f"{kind}.gguf", kind)
    opened = herd.load(path, dtype=torch.float32)
    assert kind in capsys.readouterr().err
    ids = torch.randint(0, 300, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    [(_, _, theirs)] = continued(server(path), tokenizer, ids, 1)
    ours = opened.logits(ids)[-1].log_softmax(-1).max()
    # It rounds activations to 8 bits, which Herd does not.
    assert abs(float(ours) - theirs) < 0.1
    assert 0 < (opened.logits(ids) - logits_of(model, ids)).norm() / logits_of(model, ids).norm() < 0.8


def test_a_gguf_opens_everywhere_as_the_folder_that_it_was_made_from(tmp_path: Path) -> None:
    tokenizer = random_tokenizer()
    model = random_model(small(tokenizer), seed=0, scale=0.15)
    path = write(model, tokenizer, tmp_path)
    opened = herd.load(path)
    ids = tokenizer.encode("the cat sat on the mat, der Hund, बिल्ली") * 4
    assert torch.equal(opened.logits(ids), logits_of(model, ids))
    assert opened.config.rope_scaling == SCALING and opened.config.special.stop == tokenizer.ids.stop
    chat = [{"role": "user", "content": "<|eot|> the cat"}]
    assert opened.tokenizer.encode("ねこ <|eot|>") == tokenizer.encode("ねこ <|eot|>")
    assert opened.tokenizer.decode(opened.render(chat).token_ids, skip_special=False).count("<|eot|>") == 2
    # Back to a folder: the same weights, and a whole folder beside them.
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    again = herd.load(tmp_path / "folder")
    assert torch.equal(again.logits(ids), opened.logits(ids))
    assert again.render(chat).token_ids == opened.render(chat).token_ids


def test_a_split_gguf_and_per_layer_keys_open(tmp_path: Path) -> None:
    tokenizer = random_tokenizer()
    model = random_model(small(tokenizer, **WIDE), seed=0, scale=0.08)
    layers = [model.config.num_kv_heads] * model.config.num_layers
    changes = {"llama4.attention.head_count_kv": layers}
    whole = rewritten(write(model, tokenizer, tmp_path), tmp_path / "whole.gguf", "F32", changes)
    parts = split(whole, tmp_path / "part")
    ids = list(range(40))
    for path in (whole, *parts):
        assert torch.equal(herd.load(path).logits(ids), logits_of(model, ids)), path
    parts[1].unlink()
    with pytest.raises(HerdError, match=r"part-00002-of-00003\.gguf missing of 3 files"):
        herd.load(parts[0])
    layers[1] += 1
    with pytest.raises(HerdError, match=r"head_count_kv=.* differs between layers"):
        herd.load(rewritten(tmp_path / "m.gguf", tmp_path / "uneven.gguf", "F32", changes))


def split(whole: Path, stem: Path) -> list[Path]:
    """The file as llama.cpp's gguf-split cuts it: the metadata in the first part."""
    import gguf

    reader = gguf.GGUFReader(whole)
    paths = [stem.with_name(f"{stem.name}-{number:05d}-of-00003.gguf") for number in (1, 2, 3)]
    for index, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama4")
        for field in reader.fields.values() if index == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
        writer.add_uint16("split.no", index)
        writer.add_uint16("split.count", 3)
        for tensor in reader.tensors[index::3]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.mark.parametrize(
    ("key", "value", "reported"),
    [
        ("llama4.rope.scaling.type", "yarn", "RoPE scaling of type 'yarn'"),
        ("llama4.attention.sliding_window", 0, r"sliding_window=0 \(no chunks\) is not supported"),
        ("llama4.attention.sliding_window_pattern", 2, "sliding_window_pattern=2 is not supported, only 4"),
        ("llama4.rope.dimension_count", 8, "rope.dimension_count=8 is not supported, only 16"),
        ("general.architecture", "clip", r"is the vision part of a model \(mmproj\)"),
        ("general.architecture", "gemma3", "architecture 'gemma3' is not read"),
    ],
)
def test_keys_that_ask_for_another_model_are_refused(key: str, value: object, reported: str, tmp_path: Path) -> None:
    tokenizer = random_tokenizer()
    write(random_model(small(tokenizer), seed=0, scale=0.15), tokenizer, tmp_path)
    file = LlamaCppFile(tmp_path / "m.gguf")
    with pytest.raises(HerdError, match=reported):
        asked(file, key, value).weights()


def asked(file: LlamaCppFile, key: str, value: object) -> LlamaCppFile:
    """The file, had it this key."""
    file.metadata[key] = value
    if key == "general.architecture":
        file.check_architecture()
    return file


def test_linear_scaling_of_rope_counts_as_llama_cpp_counts_it(tmp_path: Path) -> None:
    tokenizer = random_tokenizer()
    model = random_model(small(tokenizer), seed=0, scale=0.15)
    path = write(model, tokenizer, tmp_path)
    scaled = tmp_path / "scaled.gguf"
    import gguf

    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(scaled, "llama4")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_float32("llama4.rope.scale_linear", 4.0)
    for tensor in reader.tensors:
        if tensor.name != "rope_freqs.weight":
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = herd.load(scaled)
    ids = torch.randint(0, 300, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    same_answer(opened.transformer, server(scaled), tokenizer, ids, 4)
    assert (opened.logits(ids) - logits_of(model, ids)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nope_every": 2}, "nope_every=2 has no form in GGUF: llama.cpp has 4"),
        ({"nope_every": 5}, "nope_every=5"),
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
