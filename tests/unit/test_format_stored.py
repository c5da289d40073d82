"""Tensors in files: read to the bit, and refused by name where a file lies about itself."""

import json
import os
import pickle
import resource
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from herd.errors import HerdError
from herd.model.formats.stored import open_pth, open_safetensors

TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).bfloat16(),
    "half": torch.randn(2, 2, 2).half(),
    "whole": torch.arange(-3, 3, dtype=torch.int8),
    "eight": torch.randn(16).to(torch.float8_e4m3fn),
    "nothing": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
}


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def equal(found: dict[str, Any], wanted: dict[str, torch.Tensor]) -> bool:
    def bits(x: torch.Tensor) -> list[int]:
        return x.contiguous().reshape(-1).view(torch.uint8).tolist()

    read = {name: stored.read() for name, stored in found.items()}
    return read.keys() == wanted.keys() and all(
        read[name].dtype == x.dtype and read[name].shape == x.shape and bits(read[name]) == bits(x)
        for name, x in wanted.items()
    )


def test_what_safetensors_and_torch_wrote_is_read_to_the_bit(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert equal(open_safetensors(tmp_path / "x.safetensors"), TENSORS)
    base = torch.arange(100.0)
    views = {"first": base[10:20], "second": base[50:90].view(4, 10)}
    extra = {"rope._extra_state": __import__("io").BytesIO(b"what Meta's files have")}
    torch.save({**TENSORS, **views, **extra}, tmp_path / "x.pth")
    assert equal(open_pth(tmp_path / "x.pth"), TENSORS | views)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.data(), st.sampled_from([1, 16, 4096]))
def test_a_part_of_a_tensor_is_read_as_a_slice_of_the_whole(shape: list[int], data: st.DataObject, short: int) -> None:
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    box = []
    for size in shape:
        begin = data.draw(st.integers(0, size))
        box.append((begin, data.draw(st.integers(begin, size))))
    wanted = whole[tuple(slice(*span) for span in box)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("herd.model.formats.stored.SHORT_BYTES", short)
        patch.setattr("herd.model.formats.stored.AT_ONCE_BYTES", 40)
        save_file({"a": whole}, Path(folder) / "x.safetensors")
        stored = open_safetensors(Path(folder) / "x.safetensors")["a"]
        assert torch.equal(stored.read_box(tuple(box), torch.empty(wanted.shape)), wanted)


def safetensors(header: Any, data: bytes = bytes(64)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def one(**changes: Any) -> dict[str, Any]:
    return {"t": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} | changes}


LIES = {
    "nothing": b"",
    "a header longer than the file": (1 << 62).to_bytes(8, "little") + bytes(100),
    "a header that is no JSON": safetensors(b"{'t': 1}"),
    "a header of another kind": safetensors([1, 2]),
    "nesting without end": safetensors(b"[" * 100_000),
    "a giant tensor": safetensors(one(shape=[1 << 40, 1 << 40], data_offsets=[0, 1 << 82])),
    "data beyond the end": safetensors(one(data_offsets=[1 << 40, (1 << 40) + 64])),
    "data before the start": safetensors(one(data_offsets=[-64, 0])),
    "a negative size": safetensors(one(shape=[-16], data_offsets=[64, 0])),
    "fewer bytes than the shape": safetensors(one(data_offsets=[0, 32])),
    "an unknown type": safetensors(one(dtype="F3")),
    "a line without a shape": safetensors({"t": {"dtype": "F32"}}),
    "a file cut off": safetensors(one(), bytes(63)),
}


@pytest.mark.parametrize("case", LIES)
def test_safetensors_that_lie_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(LIES[case])
    with pytest.raises(HerdError, match=r"x\.safetensors is damaged") as error:
        open_safetensors(path)
    assert "\n" not in str(error.value)


class Malice:
    """What would run `touch` when unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    torch.save({"t": torch.ones(2), "evil": Malice(tmp_path / "ran")}, tmp_path / "x.pth")
    with pytest.raises(HerdError, match="could run code"):
        open_pth(tmp_path / "x.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Malice(tmp_path / "ran")))
    with pytest.raises(HerdError, match="no whole archive"):
        open_pth(tmp_path / "old.pth")
    assert not (tmp_path / "ran").exists()


def test_archives_that_are_cut_compressed_or_of_something_else_are_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "x.pth", tmp_path / "other.pth"
    torch.save({"t": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        other.write_bytes(whole[:length])
        with pytest.raises(HerdError, match=r"other\.pth"):
            open_pth(other)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(HerdError, match="is compressed"):
        open_pth(other)
    torch.save([torch.ones(2)], path)
    with pytest.raises(HerdError, match="holds a list"):
        open_pth(path)
    torch.save({"t": torch.ones(4, 3).T}, path)
    with pytest.raises(HerdError, match="not contiguous"):
        open_pth(path)


def test_a_tensor_larger_than_its_archive_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "x.pth", tmp_path / "other.pth"
    torch.save({"t": torch.empty(1, dtype=torch.uint8).expand(1 << 40).as_strided((1 << 40,), (0,))}, path)
    with pytest.raises(HerdError, match="not contiguous"):
        open_pth(path)
    torch.save({"t": torch.ones(1000)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():  # BININT2 1000 is the number of values and the size: 65,535 of both
            content = old.read(name)
            new.writestr(name, content.replace(b"M\xe8\x03", b"M\xff\xff") if name.endswith("data.pkl") else content)
    with pytest.raises(HerdError, match="damaged"):
        open_pth(other)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensor = torch.ones(50, dtype=dtype)
        tensor[31] = value
        save_file({"t": tensor}, tmp_path / "x.safetensors")
        with pytest.raises(HerdError, match="t holds values that are not finite"):
            open_safetensors(tmp_path / "x.safetensors")["t"].read()
