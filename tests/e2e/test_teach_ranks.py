"""`herd teach` under torchrun: two ranks write the rows that one writes, however the model is shared out."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_ranks import free_port, herd_command

from herd.core.files import write_json
from herd.data.loading.teacher_rows import INDEX, TeacherFolder, draws_of


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["replicate", "expert", "shard", "tensor", "context"])
def test_two_ranks_write_the_rows_of_one(axis: str, tiny_folder: Path, tiny_data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    write_json(model / "herd.json", {"stage": "random", "hash": "0"})
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    words = ["teach", model, "--data", tiny_data, "--num-tokens", "6000", "--context", "128", "--dtype", "float32"]
    subprocess.run(herd_command(*words, "--out", tmp_path / "one"), env=env, check=True, timeout=600)
    world = env | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = herd_command(*words, "--out", tmp_path / "two", f"--parallel.{axis}", "2")
    ranks = [subprocess.Popen(command, env=world | {"RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0], sys.argv
    one, two = (TeacherFolder(tmp_path / name) for name in ("one", "two"))
    for name in INDEX:
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    rows = [np.fromfile(folder.path / "rows-00000.bin", dtype=folder.dtype) for folder in (one, two)]
    assert np.allclose(*(x["logprob"].astype(float) for x in rows), atol=0.02)
    assert (draws_of(rows[0]) == draws_of(rows[1])).mean() > 0.999  # sums in another order move an edge
