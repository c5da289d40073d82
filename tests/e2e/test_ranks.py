"""The command under torchrun: stopped on two ranks and finished on one, it is the training of one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import herd
from herd.cli import main
from herd.core.files import work_folder, write_json
from herd.core.lineage import read_lineage
from herd.core.tracker import read_metrics

SETTINGS = ["--num-tokens", "12000", "--batch-tokens", "1000", "--context", "128", "--optimizer.matrix-lr", "0.002"]


def herd_command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "herd", *map(str, words)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.slow
def test_a_run_stopped_on_two_ranks_is_finished_on_one(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    model, out, alone = tmp_path / "model", tmp_path / "out", tmp_path / "alone"
    shutil.copytree(tiny_folder, model)
    write_json(model / "herd.json", {"stage": "random", "hash": "0"})
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    words = ["pretrain", model, "--data", tiny_data, *SETTINGS]

    # The variables of torchrun, Slurm and Ray; torchrun itself would end them 30 s after a SIGTERM.
    world = env | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = herd_command(*words, "--out", out, "--parallel.expert", "2")
    ranks = [
        subprocess.Popen(command, env=world | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    lines = work_folder(out) / "metrics.jsonl"
    while all(rank.poll() is None for rank in ranks) and not (lines.exists() and len(read_metrics(lines)) >= 3):
        time.sleep(0.1)
    ranks[1].send_signal(signal.SIGTERM)  # one is asked, and all stop after the same step
    reported = [rank.communicate(timeout=500)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], reported
    assert all("stopped as asked" in words for words in reported) and not out.exists()
    made = len(read_metrics(lines))
    subprocess.run(herd_command(*words, "--out", out), env=env, check=True, timeout=600)
    subprocess.run(herd_command(*words, "--out", alone), env=env, check=True, timeout=600)

    ours, theirs = read_metrics(out / "metrics.jsonl"), read_metrics(alone / "metrics.jsonl")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] and 3 <= made < len(ours)
    for line, other in zip(ours, theirs, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=0.02)
        assert sum(map(sum, line["expert_load"])) == sum(map(sum, other["expert_load"]))
    found, wanted = herd.load(out, dtype=torch.float32), herd.load(alone, dtype=torch.float32)
    assert read_lineage(out)["parameters"] == read_lineage(alone)["parameters"]
    for (name, one), other in zip(found.transformer.named_parameters(), wanted.transformer.parameters(), strict=True):
        assert (one - other).abs().max() < 0.1, name


@pytest.mark.slow
def test_the_documented_ray_lines_train_as_torchrun_does(tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.train.torch", reason="needs the extra `ray`")
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    write_json(model / "herd.json", {"stage": "random", "hash": "0"})
    words = ["pretrain", str(model), "--data", str(tiny_data), *SETTINGS, "--parallel.expert", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "herd"]
    subprocess.run([*torchrun, *words, "--out", str(tmp_path / "torchrun")], env=env, check=True, timeout=600)

    page = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    [block] = [part.partition("```")[0] for part in page.split("```python\n")[1:] if "TorchTrainer" in part]
    asked, many = "pretrain … --parallel.shard 8", "num_workers=8, use_gpu=True"
    assert asked in block and many in block
    block = block.replace(asked, " ".join([*words, "--out", str(tmp_path / "ray")])).replace(many, "num_workers=2")
    (tmp_path / "lines.py").write_text(block, encoding="utf-8")
    subprocess.run([sys.executable, str(tmp_path / "lines.py")], env=env, check=True, timeout=600)
    ray, torchrun_ = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("ray", "torchrun"))
    assert len(ray) > 3 and [line["loss"] for line in ray] == [line["loss"] for line in torchrun_]

    failed = subprocess.run([sys.executable, str(tmp_path / "lines.py")], env=env, capture_output=True, timeout=120)
    assert failed.returncode  # the folder is there already


def test_importing_herd_makes_no_mesh_no_group_and_no_thread(tmp_path: Path) -> None:
    script = """
import pkgutil, threading, torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())

def made(*args, **options):
    raise AssertionError("made at import")

DeviceMesh.__init__ = dist.new_group = threading.Thread.start = made
import herd
for module in pkgutil.walk_packages(herd.__path__, "herd."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=120)


def test_a_wrong_product_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", tmp_path, "--data", tmp_path, "--out", tmp_path / "out", "--parallel.tensor", "3"]
    (tmp_path / "herd.json").write_text('{"hash": "0"}')
    assert main(list(map(str, words))) == 1
    said = capsys.readouterr().err
    assert "tensor 3 = 3 ranks, but one process was started" in said and said.count("\n") == 1
