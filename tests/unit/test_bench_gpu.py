"""The bench of a card, on the CPU and on a device that is not there: it is known to work before it has a card."""

from dataclasses import replace

import pytest
import torch
from pretended_device import pretended_device

from herd.bench.gpu import Size, check_resume, checks, failed_checks, parity, rates
from herd.bench.parity import SCOUT_LIKE
from herd.bench.table import Row
from herd.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
MINUTE = Size(
    text=replace(SCOUT_LIKE, vocab_size=512, num_layers=2, vision=None),
    documents=2,
    length=32,
    steps=1,
    sequences=(2,),
    trained_steps=2,
    answer_tokens=4,
)


def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "gpu", "--json"]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("herd: no CUDA device: ") and err.count("\n") == 1


def test_its_checks_hold_on_the_cpu() -> None:
    rows = checks(CPU, MINUTE)
    assert [row.ours for row in rows[:2]] == [0, 0]  # the same machine: no rounding apart
    assert [(row.ours, row.peer) for row in rows[2:]] == [(2, 2), (16, 16)]
    assert not failed_checks(rows)


def test_its_checks_hold_on_a_pretended_card() -> None:
    with pretended_device() as device:
        rows = [*parity(device.device), check_resume(device.device, MINUTE)]
        assert device.uploads
    assert all(0 <= row.ours <= 1e-5 for row in rows[:2])
    assert (rows[2].ours, rows[2].peer) == (2, 2)


def test_a_check_that_is_worse_than_its_bar_fails_and_a_slow_rate_does_not() -> None:
    row = Row(case="logits", unit="largest relative difference", ours=2e-5, peer=1e-5, peer_name="bar")
    slow = Row(case="decoding", unit="tokens/s", ours=1, peer=2, peer_name="the CPU", more_is_better=True)
    assert failed_checks([row, slow, replace(row, ours=1e-6)]) == [row]


def test_its_rates_are_of_training_prefill_and_decoding() -> None:
    rows = rates(CPU, MINUTE)
    assert [row.case for row in rows] == ["training, bf16", "prefill of 32, bf16", "decoding 2 at a time, bf16"]
    assert all(row.ours > 0 and row.peer > 0 for row in rows)
