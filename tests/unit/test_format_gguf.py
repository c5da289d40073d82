"""Reading GGUF: what llama.cpp's own package wrote comes back; files that lie are refused before memory is taken."""

import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from herd.errors import HerdError
from herd.model.formats.gguf import read_gguf

gguf = pytest.importorskip("gguf")
TYPES = gguf.GGMLQuantizationType


@pytest.fixture(autouse=True)
def little_memory():
    """A file of a few bytes must not ask for gigabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def written(path: Path, tensors: dict[str, tuple[np.ndarray, int]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 5e5)
    writer.add_token_list(["a", "bé", "c"])
    writer.add_token_types([1, 1, 3])
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, gguf.quants.quantize(array, TYPES(kind)), raw_dtype=TYPES(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_the_package_wrote_comes_back_in_every_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((3, 256)).astype(np.float32)
    kinds = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
    path = written(tmp_path / "x.gguf", {kind: (array, TYPES[kind]) for kind in kinds})
    metadata, tensors = read_gguf(path)
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.rope.freq_base"] == 5e5
    assert metadata["tokenizer.ggml.tokens"] == ["a", "bé", "c"]
    assert metadata["tokenizer.ggml.token_type"] == [1, 1, 3]
    read = dict(tensors)
    assert list(read) == kinds
    for kind, close in zip(kinds, [0, 1e-3, 1e-2, 0.02, 0.5, 0.3, 0.3, 0.2], strict=True):
        assert read[kind].shape == (3, 256) and read[kind].dtype == np.float32
        wanted = gguf.quants.dequantize(gguf.quants.quantize(array, TYPES[kind]), TYPES[kind])
        assert np.array_equal(read[kind], wanted), kind
        assert np.abs(read[kind] - array).max() <= close, kind


def test_k_quants_are_read_as_the_package_reads_them(tmp_path: Path) -> None:
    raw = np.random.default_rng(1).integers(0, 100, (2, 144), dtype=np.uint8)  # Q4_K: 144 bytes for 256 weights
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("k", raw, raw_dtype=TYPES.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    [(_, array)] = read_gguf(tmp_path / "k.gguf")[1]
    assert np.array_equal(array, gguf.quants.dequantize(raw, TYPES.Q4_K)) and array.shape == (2, 256)


def header(tensors: int, values: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


HUGE = 1 << 60
HOSTILE = {
    "nothing": (b"", "is not a GGUF file"),
    "another file": (b"PK\3\4" + bytes(40), "is not a GGUF file"),
    "an old version": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 is not read"),
    "cut in the header": (b"GGUF\3\0\0\0\1", "damaged"),
    "a giant count of tensors": (header(HUGE, 0), "tensors and 0 values would need"),
    "a giant count of values": (header(0, HUGE), "damaged"),
    "a giant string": (header(0, 1, struct.pack("<Q", HUGE) + bytes(64)), "a string would need"),
    "a giant array": (header(0, 1, text("k") + struct.pack("<IIQ", 9, 4, HUGE)), "values of k would need"),
    "an array of strings that are not there": (
        header(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 1 << 40)),
        "values of k would need",
    ),
    "arrays in arrays in arrays": (
        header(0, 1, text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 40),
        "which GGUF does not know",
    ),
    "an unknown type of value": (header(0, 1, text("k") + struct.pack("<IQ", 77, 0)), "has the type 77"),
    "many dimensions": (header(1, 0, text("t") + struct.pack("<I", 1 << 30) + bytes(64)), "dimensions"),
    "an unknown type of tensor": (header(1, 0, text("t") + struct.pack("<IQIQ", 1, 8, 999, 0)), "the type 999"),
    "a giant tensor": (header(1, 0, text("t") + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0)), "ends inside t"),
    "an offset beyond the end": (header(1, 0, text("t") + struct.pack("<IQIQ", 1, 8, 0, HUGE)), "ends inside t"),
    "rows that are no whole blocks": (header(1, 0, text("t") + struct.pack("<IQIQ", 1, 33, 8, 0)), "no multiple"),
    "the same tensor twice": (header(2, 0, (text("t") + struct.pack("<IQIQ", 1, 1, 0, 0)) * 2 + bytes(64)), "twice"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_malformed_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(HerdError, match=reason) as error:
        read_gguf(path)
    assert "\n" not in str(error.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "x.gguf", {"t": (np.ones((4, 32), np.float32), 8)}).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(0, len(whole) - 32, 3):
        cut.write_bytes(whole[:length])
        with pytest.raises(HerdError):
            read_gguf(cut)


def test_weights_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", {"good": (np.ones(32, np.float32), 0), "bad": (np.full(32, np.nan), 0)})
    with pytest.raises(HerdError, match="bad holds values that are not finite"):
        dict(read_gguf(path)[1])


def test_no_file_is_reported(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.gguf"):
        with pytest.raises(HerdError, match="is not a file"):
            read_gguf(path)
