"""`herd bench engine` without its peers: what it measures against, and its files."""

import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from herd import native
from herd.bench import engine, engine_files, engines
from herd.bench.engine import CASES, DEFAULT, Limits, Speed
from herd.bench.engines import wheel_build
from herd.bench.shapes import SHAPES
from herd.config import MoEConfig
from herd.engine.answer import Piece
from herd.engine.engine import Engine
from herd.errors import HerdError
from herd.model.formats import lowbit
from herd.model.formats.gguf import package
from herd.plan.counts import count


def test_the_shapes_are_those_of_the_published_table() -> None:
    totals = {name: count(SHAPES[name]).total for name in ("S", "M")}
    assert totals["S"] == pytest.approx(54.7e6, rel=2e-3)
    assert totals["M"] == pytest.approx(480e6, rel=6e-3)


def test_limits_count_the_bytes_of_a_step_and_the_operations_of_a_prompt() -> None:
    cases = {case.name: case for case in CASES}
    assert set(DEFAULT) <= set(cases)
    limits = Limits(read=40e9, products=850e9)
    # 23.6 M parameters are active, 6.3 M of them the embedding that is looked up: 40 GB/s read 17.3 M twice.
    bare = limits.speed(SHAPES["S"], "bf16", engine.Case(count=0, sequences=1))
    assert bare == pytest.approx(40e9 / (2 * 23.6e6), rel=0.02)
    assert limits.speed(SHAPES["S"], "bf16", cases["prefill 512"]) == pytest.approx(22_500, rel=0.15)


def test_speeds_are_better_where_they_are_higher() -> None:
    assert Speed(case="", unit="tokens/s", ours=30.0, peer=20.0, peer_name="").ratio == 1.5


def test_an_unknown_case_is_refused_with_the_known_ones() -> None:
    with pytest.raises(HerdError, match="prefill 512"):
        engine.engine(shapes=("S",), precisions=("bf16",), cases=("prefil 512",), llama_cpp=None, as_json=False)


def test_a_folder_without_llama_cpps_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HerdError, match="has no llama-bench"):
        engine.engine(shapes=("S",), precisions=("bf16",), cases=(), llama_cpp=tmp_path, as_json=False)


def test_the_files_hold_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(SHAPES["S"], vocab_size=512, dim=64, num_layers=2, dense_ffn_dim=64)
    small = replace(small, moe=MoEConfig(num_experts=2, ffn_dim=64, every=2))
    monkeypatch.setitem(SHAPES, "small", small)
    engine_files.write("small", "bf16", tmp_path)
    engine_files.write("small", "int8", tmp_path)
    model = lowbit.load(tmp_path / "int8")
    reader = package("gguf_reader").GGUFReader(tmp_path / "Q8_0.gguf")
    [stored] = [tensor for tensor in reader.tensors if tensor.name == "output.weight"]
    theirs = torch.from_numpy(package("quants").dequantize(stored.data, stored.tensor_type))
    ours = model.unembedding.weight.float() * model.unembedding.scale.float()
    assert (theirs - ours).abs().max() < 0.03 * ours.abs().max()


def test_opening_a_model_does_not_bring_in_pytorchs_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(SHAPES["S"], vocab_size=512, dim=64, num_layers=2, dense_ffn_dim=64)
    monkeypatch.setitem(SHAPES, "small", small)
    engine_files.write("small", "int8", tmp_path)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from herd.model.formats import huggingface, lowbit\n"
        "huggingface.load(Path(sys.argv[1]) / 'bf16')\n"
        "lowbit.load(Path(sys.argv[1]) / 'int8')\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


@pytest.mark.skipif(native.why_not() is not None, reason="no C++ compiler or no AVX-512 with VNNI")
def test_requests_are_measured_through_the_whole_engine_beside_llama_cpps_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(SHAPES["S"], vocab_size=512, dim=64, num_heads=1, num_kv_heads=1, num_layers=4)
    monkeypatch.setitem(SHAPES, "small", replace(small, dense_ffn_dim=64, moe=replace(small.moe, ffn_dim=64)))
    engine_files.write("small", "bf16", tmp_path)
    monkeypatch.setattr(engines, "prompt", lambda count, seed: [3 + (seed * 7 + i) % 200 for i in range(count)])
    answered: list[int] = []
    generate = Engine.generate

    async def counted(*args: object, **options: object) -> AsyncIterator[Piece]:
        async for piece in generate(*args, **options):
            answered.extend(piece.token_ids)
            yield piece

    monkeypatch.setattr(Engine, "generate", counted)
    assert 0 < engines.Herd(tmp_path / "bf16").served(3, 20, 8) < 1
    assert 3 * 8 < len(answered) <= 2 * 3 * 8  # once to warm up
    peer = engines.LlamaCpp(tmp_path / "BF16.gguf")
    assert 0 < peer.served(3, 20, 8) < 1
    assert wheel_build().startswith("the wheel's build for ")
