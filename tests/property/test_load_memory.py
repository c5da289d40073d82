"""Opening a folder takes its weights' bytes, and little more."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from herd.config import MoEConfig, SpecialIds, preset
from herd.model.formats import huggingface
from herd.model.transformer import Transformer

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)

SCRIPT = """
import json, sys
from pathlib import Path
from herd.core.lineage import peak_memory_bytes
from herd.model.formats import huggingface
before = peak_memory_bytes()
model = huggingface.load(Path(sys.argv[1]))
size = sum(p.nbytes for p in model.parameters())
print(json.dumps({"size": size, "taken": peak_memory_bytes() - before}))
"""


@pytest.mark.slow
def test_loading_takes_at_most_115_percent_of_the_weights(tmp_path: Path) -> None:
    config = replace(
        preset("tiny", vocab_size=32_000, special=SPECIAL),
        dim=1024,
        num_layers=12,
        num_heads=16,
        moe=MoEConfig(num_experts=8, ffn_dim=2048),
    )
    model = Transformer(config).bfloat16().requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(0.5)  # memory that nobody has written takes none
    huggingface.save(model, tmp_path, dtype=torch.bfloat16)
    huggingface.save_processor(config, tmp_path)
    del model
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True)
    reported = json.loads(run.stdout.splitlines()[-1])
    print(f"{reported['size'] / 1e9:.2f} GB of weights, {reported['taken'] / 1e9:.2f} GB taken")
    assert reported["size"] > 1e9
    assert reported["taken"] <= 1.15 * reported["size"]
