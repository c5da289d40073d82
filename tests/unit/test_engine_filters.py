"""Stop strings: what passes the filter does not depend on how the stream was cut."""

from hypothesis import example, given
from hypothesis import strategies as st

from herd.engine.filters import StopFilter

letters = st.text(alphabet="ab\n", max_size=12)
stops = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4)


def filtered(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stop = StopFilter(stops)
    text = "".join(stop.push(piece) for piece in pieces)
    return text + stop.finish(), stop.verdict is not None


def letter_by_letter(text: str, stops: list[str]) -> tuple[str, bool]:
    """The slow reference: read on until what was read ends with a stop string, and leave the longest such out."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(pieces=st.lists(letters, max_size=6), stops=stops)
@example(pieces=["abba"], stops=["abba", "b"])
def test_any_cut_of_a_stream_gives_what_reading_letter_by_letter_gives(pieces, stops):
    assert filtered(pieces, stops) == letter_by_letter("".join(pieces), stops)


@given(pieces=st.lists(letters, max_size=6), stops=stops)
def test_only_a_possible_beginning_of_a_stop_string_is_held_back(pieces, stops):
    stop = StopFilter(stops)
    passed, text = "", ""
    for piece in pieces:
        passed, text = passed + stop.push(piece), text + piece
        held = text[len(passed) :]
        assert stop.verdict or held == "" or any(one.startswith(held) and one != held for one in stops)


def test_nothing_passes_after_a_stop_string():
    stop = StopFilter(["."])
    assert [stop.push("a.b"), stop.push("c"), stop.finish()] == ["a", "", ""]
