"""Why no mmproj is written: llama.cpp gives the tokens of a tile column by column, Llama 4 has them row by row.

A reproduction by its own library (mtmd) on random weights. When it fails at the order, llama.cpp has it right and the
vision encoder can be exported.
"""

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folder import random_tokenizer
from torch import Tensor

from herd.bench.oracles import random_model
from herd.config import preset
from herd.model.formats import llama_cpp
from herd.model.formats.weights import Weights
from herd.model.vision import VisionEncoder

gguf = pytest.importorskip("gguf")


def write_mmproj(vision: VisionEncoder, text_dim: int, path: Path) -> None:
    """The encoder as llama.cpp's converter (conversion/llama4.py) writes it, in fp32."""
    config = vision.config
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "llama4")
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "embedding_length": config.dim,
        "feed_forward_length": config.mlp_dim,
        "block_count": config.num_layers,
        "projection_dim": text_dim,
        "attention.head_count": config.num_heads,
        "projector.scale_factor": 2,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", config.norm_eps)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    tensors: dict[str, Tensor] = {
        "v.class_embd": vision.class_token,
        "v.patch_embd.weight": vision.patches.weight,
        "v.position_embd.weight": vision.positions,
        "mm.model.mlp.1.weight": vision.adapter_in.weight,
        "mm.model.mlp.2.weight": vision.adapter_out.weight,
        "mm.model.fc.weight": vision.projector.weight,
    }
    parameters = dict(vision.named_parameters())
    names = {"norm_before": "v.pre_ln", "norm_after": "v.post_ln"}
    for layer in range(config.num_layers):
        parts = {"attention_norm": "ln1", "mlp_norm": "ln2", "out": "attn_out", "up": "ffn_up", "down": "ffn_down"}
        names |= {f"layers.{layer}.{ours}": f"v.blk.{layer}.{theirs}" for ours, theirs in parts.items()}
        for kind in ("weight", "bias"):
            for part, rows in zip("qkv", parameters[f"layers.{layer}.qkv.{kind}"].chunk(3), strict=True):
                tensors[f"v.blk.{layer}.attn_{part}.{kind}"] = rows
    tensors |= {
        f"{theirs}.{kind}": parameters[f"{ours}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.detach().numpy().astype(np.float32).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Parameters(ctypes.Structure):
    """A structure of llama.cpp that is passed on as it was given; larger than any of them."""

    _fields_ = [("words", ctypes.c_int64 * 64)]


class Prompt(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char_p), ("add_special", ctypes.c_bool), ("parse_special", ctypes.c_bool)]


def library() -> Any:
    found: Any = ctypes.CDLL(pytest.importorskip("xllamacpp").xllamacpp.__file__)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("llama_model_default_params", Parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Parameters]),
        ("mtmd_context_params_default", Parameters, []),
        ("mtmd_init_from_file", pointer, [ctypes.c_char_p, pointer, Parameters]),
        ("mtmd_bitmap_init", pointer, [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p]),
        ("mtmd_input_chunks_init", pointer, []),
        ("mtmd_input_chunks_get", pointer, [pointer, size]),
        ("mtmd_input_chunks_size", size, [pointer]),
        ("mtmd_input_chunk_get_type", ctypes.c_int, [pointer]),
        ("mtmd_input_chunk_get_n_tokens", size, [pointer]),
        ("mtmd_tokenize", ctypes.c_int, [pointer, pointer, ctypes.POINTER(Prompt), ctypes.POINTER(pointer), size]),
        ("mtmd_encode_chunk", ctypes.c_int, [pointer, pointer]),
        ("mtmd_get_output_embd", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("mtmd_default_marker", ctypes.c_char_p, []),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    found.llama_backend_init()
    return found


def encoded_there(text: Path, mmproj: Path, pixels: np.ndarray, dim: int) -> Tensor:
    """llama.cpp's features of a picture of one tile, in the order in which its text model reads them."""
    llama = library()
    model = llama.llama_model_load_from_file(str(text).encode(), llama.llama_model_default_params())
    context = llama.mtmd_init_from_file(str(mmproj).encode(), model, llama.mtmd_context_params_default())
    assert model and context
    bitmap = llama.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], pixels.tobytes())
    chunks = llama.mtmd_input_chunks_init()
    prompt = Prompt(llama.mtmd_default_marker(), False, True)
    assert llama.mtmd_tokenize(context, chunks, ctypes.byref(prompt), (ctypes.c_void_p * 1)(bitmap), 1) == 0
    found = [llama.mtmd_input_chunks_get(chunks, index) for index in range(llama.mtmd_input_chunks_size(chunks))]
    [picture] = [chunk for chunk in found if llama.mtmd_input_chunk_get_type(chunk) == 1]
    assert llama.mtmd_encode_chunk(context, picture) == 0
    count = llama.mtmd_input_chunk_get_n_tokens(picture)
    return torch.from_numpy(np.ctypeslib.as_array(llama.mtmd_get_output_embd(context), (count, dim)).copy())


def test_llama_cpp_reads_the_tokens_of_a_tile_column_by_column(tmp_path: Path) -> None:
    tokenizer = random_tokenizer()
    base = preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
    assert base.vision is not None
    config = replace(base, vision=replace(base.vision, image_size=96))  # 3 x 3 tokens
    model = random_model(config, seed=0, scale=0.05)
    facts: dict[str, Any] = {}
    llama_cpp.write_text(Weights.of(model), tokenizer.document, tmp_path / "t.gguf", dtype=torch.float32, facts=facts)
    assert model.vision is not None
    write_mmproj(model.vision, config.dim, tmp_path / "mmproj.gguf")
    pixels = (torch.rand(96, 96, 3, generator=torch.Generator().manual_seed(3)) * 255).byte()
    theirs = encoded_there(tmp_path / "t.gguf", tmp_path / "mmproj.gguf", pixels.numpy(), config.dim)
    with torch.inference_mode():
        tile = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
        ours = model.vision(tile)[0]
    columns = ours.view(3, 3, -1).transpose(0, 1).flatten(0, 1)
    # What is left is fp16 in its attention, and tanh in its GELU.
    assert (theirs - columns).norm() / columns.norm() < 3e-3
    assert (theirs - ours).norm() / ours.norm() > 0.3
