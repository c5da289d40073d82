"""`herd bench serve` before a model without weights: what its clients count, and its rows."""

import asyncio
import math
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_herd import FakeModel

from herd.bench import serve, serve_load, serve_soak
from herd.bench.serve_load import Seen
from herd.engine.pipeline import AnswerPipeline
from herd.errors import HerdError
from herd.serve import server as api
from herd.serve.models import one_model


def test_clients_count_the_pieces_of_a_server_and_when_each_came() -> None:
    model = FakeModel(delay_s=0.01)
    engine = model.engine()
    with api.listen("127.0.0.1", 0) as listener:
        running = api.Server(api.create_app(one_model(AnswerPipeline(model, engine), name="fake")), engine)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            seen = asyncio.run(serve_load.over_http(url, clients=2, seconds=0.5))
        finally:
            running.should_exit = True
            thread.join(10)
    # Each answer of the fake repeats the question's words; the first piece, of the pictures, is empty.
    words = len(serve_load.question(0, 1).split())
    assert len(engine.seen) >= 2
    assert len(seen.first_s) == len(engine.seen)
    assert len(seen.gaps_s) == len(engine.seen) * (words - 1)
    assert min(seen.first_s) >= 0.02
    assert sorted(seen.gaps_s)[len(seen.gaps_s) // 2] >= 0.01
    assert 0 < seen.pieces_per_s <= 2 * (len(seen.first_s) + len(seen.gaps_s))


def test_pieces_that_come_after_the_time_do_not_count_for_the_rate() -> None:
    async def ask(text: str) -> AsyncIterator[object]:
        yield 1
        yield 2
        await asyncio.sleep(0.1)
        yield 3

    seen = asyncio.run(serve_load.load(ask, clients=3, seconds=0.05))
    assert seen.pieces_per_s == pytest.approx(3 * 2 / 0.05)
    assert (len(seen.first_s), len(seen.gaps_s)) == (3, 6)


def test_every_question_is_another_one_from_its_first_word_on() -> None:
    first = [serve_load.question(client, number).split()[0] for client in range(32) for number in range(50)]
    assert len(set(first)) == len(first)


def test_rows_are_better_with_more_pieces_and_less_waiting() -> None:
    seen = {
        serve.OURS: [Seen(pieces_per_s=30.0, first_s=[0.01], gaps_s=[0.001] * 98 + [0.1] * 2)],
        serve.ALONE: [Seen(pieces_per_s=60.0, first_s=[0.005], gaps_s=[0.0005])],
        serve.PEER: [Seen(pieces_per_s=v, first_s=[0.02], gaps_s=[0.002]) for v in (1.0, 10.0, 11.0)],
    }
    rows = {(row.peer_name, row.case): row for row in serve.rows_of(8, seen)}
    assert len(rows) == 10
    assert rows[serve.ALONE, "8 clients pieces"].ratio == pytest.approx(0.5)
    assert rows[serve.PEER, "8 clients pieces"].ratio == pytest.approx(3)
    assert rows[serve.PEER, "8 clients first piece p50"].ratio == pytest.approx(2)
    assert rows[serve.PEER, "8 clients gap p99"].ours == pytest.approx(100)
    assert serve.percentile([], 0.5) == math.inf


def test_what_cannot_be_measured_is_refused_at_once(tmp_path: Path) -> None:
    asked = {"rounds": 1, "seconds": 1.0, "as_json": False}
    with pytest.raises(HerdError, match="no llama-server"):
        serve.serve(clients=(1,), llama_cpp_folder=tmp_path, **asked)
    with pytest.raises(HerdError, match="must be positive"):
        serve.serve(clients=(0,), llama_cpp_folder=None, **asked)


def test_a_guard_s_cost_is_the_ratio_of_tokens_and_its_copy_blocks_nothing(tmp_path: Path) -> None:
    from herd.bench import serve_guard

    seen = {
        serve_guard.WITH: [(90.0, Seen(first_s=[0.4]))],
        serve_guard.WITHOUT: [(100.0, Seen(first_s=[0.1])), (120.0, Seen(first_s=[0.1])), (110.0, Seen())],
    }
    tokens, first = serve_guard.rows_of(8, seen)
    assert tokens.ratio == pytest.approx(90 / 110) and first.ratio == pytest.approx(0.25)
    with pytest.raises(HerdError, match="no guard"):
        serve_guard.open_wide(tmp_path, tmp_path / "copy")
    folder = tmp_path / "guard"
    folder.mkdir()
    (folder / "herd.json").write_text('{"guard": {"threshold": 0.5, "context": 9}}')
    copy = serve_guard.open_wide(folder, tmp_path / "copy")
    assert '"threshold": 2.0' in (copy / "herd.json").read_text() and "9" in (copy / "herd.json").read_text()


@pytest.mark.parametrize(
    ("memory", "left", "fails"),
    [([100.0] * 40, 0.0, False), ([100.0] * 30 + [103.0] * 10, 0.0, True), ([100.0] * 40, 4096.0, True)],
    ids=["flat", "grows", "a page is left"],
)
def test_a_soak_fails_where_memory_grows_or_a_page_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], memory: list[float], left: float, fails: bool
) -> None:
    values = iter(memory)
    done = threading.Event()

    def next_value(pid: int) -> float:
        value = next(values, None)
        if value is None:
            done.set()
            return memory[-1]
        return value

    @contextmanager
    def herd_process(folder: Path) -> Iterator[tuple[SimpleNamespace, str]]:
        yield SimpleNamespace(pid=1), "http://nowhere"

    def over_http(url: str, clients: int, seconds: float) -> Seen:
        assert (clients, seconds) == (64, 30.0) and done.wait(10)
        return Seen(pieces_per_s=2.0, first_s=[0.5], gaps_s=[0.1, 0.3])

    monkeypatch.setattr(serve_soak.subprocess, "run", lambda *a, **k: None)
    for name, value in {
        "EVERY_S": 0.001, "herd_process": herd_process, "over_http": over_http, "resident_mb": next_value,
        "used_bytes": lambda url: left,
    }.items():  # fmt: skip
        monkeypatch.setattr(serve_soak, name, value)
    if fails:
        with pytest.raises(HerdError, match="does not end as it was"):
            serve_soak.soak(minutes=0.5, as_json=False)
    else:
        serve_soak.soak(minutes=0.5, as_json=False)
        assert "gap_p99_ms           300.0" in capsys.readouterr().out


def test_the_resident_memory_of_another_process_is_read() -> None:
    assert serve_soak.resident_mb(os.getpid()) > 50
