"""Messages are answered once though deliveries are doubled, shuffled, batched and servers are killed; a naive handler
loses them in the same storm."""

import pytest

from herd.bench.channels import Fate, storm


def is_right(fate: Fate) -> bool:
    counted = fate.answered + fate.unknown + fate.deleted
    return counted == fate.messages and fate.lost == fate.doubled == fate.to_ourselves == fate.forged == 0


@pytest.mark.parametrize("channel", ["whatsapp", "messenger", "instagram"])
def test_no_message_is_lost_or_answered_twice(channel: str):
    fate = storm(channel, messages=60, kills=2, people=15, seed=1)
    assert is_right(fate), fate.examples[:5]
    assert fate.answered > 30 and fate.kills == 2


def test_a_naive_handler_fails_in_the_same_storm():
    fate = storm("messenger", kind="naive", messages=60, kills=1, people=15, seed=1)
    assert fate.lost and fate.doubled


@pytest.mark.slow
@pytest.mark.parametrize(("channel", "messages"), [("whatsapp", 44_000), ("messenger", 24_500), ("instagram", 24_500)])
def test_ten_thousand_deliveries_and_two_hundred_kills(channel: str, messages: int):
    fate = storm(channel, messages=messages, kills=200, seed=2, per_s=15, settle_s=900)
    assert is_right(fate), fate.examples[:5]
    assert fate.answered > 0.85 * messages and fate.kills == 200 and fate.deliveries > 10_000


@pytest.mark.slow
def test_pywa_loses_messages_of_batches():
    fate = storm("whatsapp", kind="pywa", messages=300, kills=2, seed=2)
    assert fate.lost and fate.answered, "a control that answers nothing shows nothing"
