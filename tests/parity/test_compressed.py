"""Quantised folders in transformers, which unpacks them by compressed-tensors: same words, nearly the same logits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import herd
from herd.evaluate.quantized import quantize_folder
from herd.model.quantize import Scheme, unpack

pytest.importorskip("compressed_tensors", reason="pip install 'herd-lm[oracle]'")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SCHEMES = {
    "int4": Scheme(name="int4", group=64),
    "int4 without head": Scheme(name="int4", group=32, keep_head=True),
    "int4 of 32, searched": Scheme(name="int4", group=32, fit="search"),
    "int8": Scheme(name="int8"),
    "fp8": Scheme(name="fp8"),
    "fp8 everywhere": Scheme(name="fp8", everywhere=True),
}


@pytest.fixture(scope="module", params=SCHEMES)
def made(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantised") / "model"
    return quantize_folder(tiny_folder, target, SCHEMES[request.param], max_bytes=1)


def test_words_are_those_of_compressed_tensors(made: Path) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    [shard] = made.glob("*.safetensors")
    tensors = load_file(shard)
    for name, words in tensors.items():
        if name.endswith("weight_packed"):
            shape = torch.Size(tensors[name.replace("weight_packed", "weight_shape")].tolist())
            assert torch.equal(unpack_from_int32(words, 4, shape), unpack(words.view(torch.uint8)))


def test_transformers_opens_it_and_differs_by_the_rounding_of_activations(made: Path) -> None:
    ids = [9, 50, 60, 70, 80] * 8
    ours = herd.load(made, dtype=torch.float32).logits(ids)
    model, reported = transformers.Llama4ForConditionalGeneration.from_pretrained(
        made, output_loading_info=True, dtype=torch.float32
    )
    assert not reported["missing_keys"]
    assert not reported["unexpected_keys"]
    with torch.inference_mode():
        theirs = model(torch.tensor([ids])).logits[0]
    assert float((ours - theirs).norm() / theirs.norm()) < 0.2
