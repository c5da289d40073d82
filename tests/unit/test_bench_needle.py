"""The bench of long texts runs whole on a small model, and says what it could not find."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from herd.bench import needle
from herd.config import MoEConfig, preset
from herd.core.files import write_json
from herd.data.packages.planted import Values
from herd.data.packages.statements import HELD_OUT, KINDS
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.formats import huggingface
from herd.model.init import initialise
from herd.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    out = tmp_path / "model"
    out.mkdir()
    tokenizer = Tokenizer.load(tiny_data / "tokenizer")
    config = preset("tiny-long", vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
    narrow = replace(config, dim=32, num_heads=2, num_kv_heads=1, head_dim=16, moe=MoEConfig(num_experts=2, ffn_dim=32))
    model = Transformer(replace(narrow, chunk_size=128))
    initialise(model, torch.Generator().manual_seed(0))
    huggingface.save(model, out, dtype=torch.float32)
    tokenizer.save(out)
    write_json(out / "herd.json", {"stage": "random", "hash": "0"})
    text = "The cat sat on the mat. A dog came in and sat beside it.\n" * 400
    monkeypatch.setattr(needle, "haystack", lambda _, tokenizer, length: np.array(tokenizer.encode(text))[:length])
    values = Values(["lantern", "amber", "velvet"] * 9, ["Anna", "Rome"], evaluation=True)
    values.words, values.names = ["lantern", "amber"], ["Anna", "Rome"]  # the small folder has none held out
    monkeypatch.setattr(needle, "evaluation_values", lambda _: values)
    return out


def test_first_weights_find_nothing_and_every_figure_is_printed(
    folder: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needle.needle(folder, tiny_data, context=4096, seeds=1, budget_gb=1.0, as_json=True)
    rows = {row["case"]: row["ours"] for row in json.loads(capsys.readouterr().out)["rows"]}
    missed = {case: figure for case, figure in rows.items() if "missed" in case}
    of_kinds, of_wordings = 2 * (1 + len(KINDS)), len(HELD_OUT)
    assert len(missed) == 4 + of_kinds + of_wordings + 2 and set(missed.values()) == {1.0}
    assert all(f"{kind}, held-out wordings" in " ".join(missed) for kind in KINDS)
    assert all(figure > 0 for figure in rows.values())
    assert any("certified" in case and f"0 of {needle.CERTIFIED} answers right" in case for case in rows)


def test_a_context_beyond_the_budget_is_refused_before_the_text_is_made(folder: Path, tiny_data: Path) -> None:
    with pytest.raises(HerdError, match="are given: shorten the text or give more"):
        needle.needle(folder, tiny_data, context=10 * 2**20, seeds=1, budget_gb=0.1, as_json=True)
