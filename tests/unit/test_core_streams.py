"""herd.core.streams: randomness is a function of its place."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from herd.core.streams import seed_of, stream

places = st.lists(st.integers() | st.text(), max_size=4).map(tuple)


@given(st.integers(), places, places)
def test_seeds_differ_exactly_where_places_do(seed: int, one: tuple[int | str, ...], other: tuple[int | str, ...]):
    assert (seed_of(seed, *one) == seed_of(seed, *other)) == (one == other)
    assert 0 <= seed_of(seed, *one) < 2**63


def test_what_was_drawn_before_changes_nothing():
    plain = stream(3, "mix", 5).random(8).tolist()
    busy = stream(3, "mix", 4)
    busy.random(1000)
    assert stream(3, "mix", 5).random(8).tolist() == plain
    assert stream(3, "mix", "5").random(8).tolist() != plain


def test_another_process_draws_the_same():
    code = "from herd.core.streams import seed_of; print(seed_of(1, 'pretrain', 2))"
    reported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(reported) == seed_of(1, "pretrain", 2)


def test_the_numbers_are_spread_evenly():
    firsts = [stream(0, "sample", index).random() for index in range(2000)]
    counts = [sum(low / 10 <= value < (low + 1) / 10 for value in firsts) for low in range(10)]
    assert min(counts) > 140, counts
    assert max(counts) < 260, counts
