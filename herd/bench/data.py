"""`herd bench data`: what a data folder costs, each step beside a library that does the same."""

from collections.abc import Callable

from herd.bench.cleaning import cleaning_rows
from herd.bench.table import Row, show
from herd.bench.tokens import loader_rows, token_rows
from herd.errors import HerdError

Measure = Callable[[float, int], list[Row]]
"""Rows for so many megabytes of text, ours and the peer's alternating for so many rounds."""

CASES: dict[str, Measure] = {"cleaning": cleaning_rows, "tokens": token_rows, "loader": loader_rows}


def data(*, cases: tuple[str, ...], megabytes: float, rounds: int, as_json: bool) -> None:
    """Measure and print the rows. Raises HerdError for a case that there is not."""
    unknown = [case for case in cases if case not in CASES]
    if unknown:
        raise HerdError(f"--cases {unknown[0]}: there are {', '.join(CASES)}")
    rows = [row for case in cases or CASES for row in CASES[case](megabytes, rounds)]
    show(rows, as_json=as_json)
