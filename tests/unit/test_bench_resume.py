"""`herd bench resume` keeps the contract of all benches."""

import json
from dataclasses import replace

import pytest

from herd.bench import resume
from herd.bench.shapes import SHAPES
from herd.cli import main
from herd.config import MoEConfig


def test_the_bench_prints_its_contract(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = replace(SHAPES["S"], vocab_size=64, dim=32, num_layers=2, num_heads=2, head_dim=16, dense_ffn_dim=64)
    monkeypatch.setitem(SHAPES, "S", replace(small, moe=MoEConfig(num_experts=2, ffn_dim=32)))
    monkeypatch.setattr(resume, "ROUNDS", 1)
    monkeypatch.setattr(resume, "STEPS", 1)
    assert main(["bench", "resume", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert [row["unit"] for row in reported["rows"]] == ["ms", "%"]
    assert all(row.keys() == {"case", "unit", "ours", "peer", "peer_name", "ratio"} for row in reported["rows"])
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in reported["rows"] if row["unit"] == "ms")
