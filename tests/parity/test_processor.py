"""transformers' own processor on our folder: the same ids, the same pixels, the same greedy tokens.

Its image processor needs torchvision, which does not import beside the torch that the fast suite pins: give it an
environment of its own (`make oracle`), where HERD_ORACLE_PYTHON or .venv-oracle/bin/python is found.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from herd.data.media.image import normalise
from herd.engine.load import load
from herd.engine.sampler import SamplingParams

ORACLE = Path(os.environ.get("HERD_ORACLE_PYTHON", Path(__file__).parents[2] / ".venv-oracle/bin/python"))
SHAPES = [(64, 64), (20, 33), (150, 90), (300, 70), (65, 64), (500, 400), (64, 200)]

SCRIPT = """
import json, sys
import torch
from PIL import Image
from transformers import AutoProcessor, Llama4ForConditionalGeneration
folder, out, *paths = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = Llama4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
reported = []
for path in paths:
    content = [{"type": "image"}, {"type": "text", "text": "the cat"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=[Image.open(path)], add_special_tokens=False, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].float()
    made = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1]:]
    torch.save(inputs["pixel_values"], path + ".pt")
    reported.append({"ids": inputs["input_ids"][0].tolist(), "made": made.tolist()})
json.dump(reported, open(out, "w"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not ORACLE.exists(), reason="no environment with torchvision: run `make oracle`")
def test_auto_processor_gives_our_ids_pixels_and_greedy_tokens(tiny_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate(SHAPES):
        noise = rng.integers(0, 255, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    out = tmp_path / "reported.json"
    command = [str(ORACLE), "-c", SCRIPT, str(tiny_folder), str(out), *map(str, paths)]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    model = load(tiny_folder, dtype=torch.float32)
    engine = model.engine()
    for path, reported in zip(paths, json.loads(out.read_text()), strict=True):
        content = [{"type": "image", "image": Image.open(path)}, {"type": "text", "text": "the cat"}]
        prompt = model.render([{"role": "user", "content": content}])
        assert prompt.token_ids == reported["ids"], path
        theirs = torch.load(f"{path}.pt", weights_only=True)
        ours = normalise(torch.cat([tiles.pixels for tiles in prompt.tiles])).float()
        assert ours.shape == theirs.shape
        # Pillow and torchvision round a resized byte differently now and then: one step of 1/127.5.
        assert (ours - theirs).abs().max() <= 2.5 / 127.5
        [answer] = engine.generate_batch([prompt], SamplingParams(max_tokens=12))
        assert answer == model.tokenizer.decode(reported["made"]), path
    engine.close()
