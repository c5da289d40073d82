"""Which device is chosen, what is said of one that is not there, and of memory that runs out."""

from pathlib import Path

import pytest
import torch

import herd
from herd.core.batch import Batch, to_device
from herd.core.device import VARIABLE, choose_device, naming_out_of_memory, out_of_memory
from herd.errors import HerdError

CARDS = 4


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with CUDA cards, as far as PyTorch can see."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: CARDS)


def test_what_is_asked_for_comes_before_the_variable_and_that_before_the_card(
    cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_device() == torch.device("cuda", 0)
    monkeypatch.setenv(VARIABLE, "cpu")
    assert choose_device() == torch.device("cpu")
    assert choose_device("cuda:2") == choose_device(torch.device("cuda", 2)) == torch.device("cuda", 2)
    assert choose_device("auto") == torch.device("cuda", 0)


def test_a_rank_takes_the_card_of_its_own_number_on_its_machine(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device() == torch.device("cuda", 3)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(HerdError, match="LOCAL_RANK=4 has no card, this machine has 4"):
        choose_device()


def test_a_machine_without_a_card_computes_on_the_cpu_only_unless_one_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == choose_device("auto") == torch.device("cpu")
    for name, words in ("cuda", "device=cuda: no CUDA device"), ("mps", "device=mps: this machine or this build"):
        with pytest.raises(HerdError, match=words):
            choose_device(name)
        monkeypatch.setenv(VARIABLE, name)
        with pytest.raises(HerdError, match=words):
            choose_device()
        monkeypatch.delenv(VARIABLE)


@pytest.mark.parametrize("name", ["cdua", "gpu", "cuda:one", "meta"])
def test_an_unknown_device_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(HerdError, match=f"unknown device '{name}'"):
        choose_device(name)


def test_a_model_is_loaded_on_the_device_that_is_named(tiny_folder: Path) -> None:
    for device in ("cpu", torch.device("cpu")):
        assert herd.load(tiny_folder, device=device).device == torch.device("cpu")
    with pytest.raises(HerdError, match="unknown device 'gpu'"):
        herd.load(tiny_folder, device="gpu")


CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 1 has a total capacity of 79.15 GiB of which 3.25 GiB is "
    "free. Process 7 has 75.90 GiB memory in use."
)


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (torch.OutOfMemoryError(CUDA), "out of memory on cuda:1 (20.00 GiB were asked for, 3.25 GiB are free)"),
        (
            RuntimeError(
                "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes."
            ),
            "out of memory on cpu (80 bytes were asked for)",
        ),
        (
            RuntimeError("MPS backend out of memory (MPS allocated: 8 GB). Tried to allocate 2.50 GB on private pool."),
            "out of memory on mps (2.50 GB were asked for)",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_running_out_of_memory_names_the_device_and_the_bytes(error: RuntimeError, reported: str | None) -> None:
    assert out_of_memory(error) == reported
    if reported is None:
        with pytest.raises(RuntimeError, match="cannot be multiplied"), naming_out_of_memory("lower it"):
            raise error
    else:
        with pytest.raises(HerdError) as raised, naming_out_of_memory("lower batch_tokens"):
            raise error
        assert str(raised.value) == f"{reported}: lower batch_tokens"


def test_a_batch_on_a_cpu_is_not_copied() -> None:
    batch = Batch(
        tokens_N=torch.arange(4),
        targets_N=torch.arange(4),
        weights_N=torch.ones(4),
        positions_N=torch.arange(4),
        starts_S=torch.tensor([0, 4]),
        images=None,
        kinds_N=torch.zeros(4, dtype=torch.int8),
    )
    assert to_device(batch, torch.device("cpu")) is batch
