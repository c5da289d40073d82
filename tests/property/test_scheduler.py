"""The scheduler against a world that remembers what is written in every page: pages are conserved, what a request reads
is its own past, nobody starves."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from herd.engine.pages import BlockTable, PageCopy, PageManager
from herd.engine.scheduler import HEAD_START, Request, Scheduler, Step

Cell = tuple[str, int, int]  # salt, weights, token


@dataclass
class World:
    """A scheduler with what would be in the pages, and answers drawn at random."""

    rng: random.Random
    page_tokens: int = 4
    chunk_size: int = 16
    num_global: int = 40
    num_local: int = 14
    max_num_seqs: int = 4
    max_prefill_tokens: int = 24
    max_mixed_prefill_tokens: int = 10
    weights: int = 0
    requests: list[Request] = field(default_factory=list)
    weights_of: dict[Request, list[int]] = field(default_factory=dict)
    released: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        pages = PageManager(
            page_tokens=self.page_tokens,
            chunk_size=self.chunk_size,
            num_global=self.num_global,
            num_local=self.num_local,
        )
        self.pages, self.pools = pages, (pages.global_pages, pages.local_pages)
        self.scheduler: Scheduler[Request] = Scheduler(
            pages,
            max_num_seqs=self.max_num_seqs,
            max_prefill_tokens=self.max_prefill_tokens,
            max_mixed_prefill_tokens=self.max_mixed_prefill_tokens,
        )
        admit = self.scheduler._admit

        def admit_and_note(request: Request) -> list[PageCopy]:
            copies = admit(request)
            self.weights_of[request] = [self.weights] * request.num_cached  # its past is the tree's, of these weights
            return copies

        self.scheduler._admit = admit_and_note  # type: ignore[method-assign]
        self.cells: dict[tuple[bool, int], list[Cell | None]] = {}

    def ask(self, prompt: list[int], answer: int, **options: object) -> Request:
        request = Request(content=list(prompt), num_prompt=len(prompt), limit=len(prompt) + answer, **options)  # type: ignore[arg-type]
        assert self.scheduler.fits(request.limit)
        self.scheduler.add(request)
        self.requests.append(request)
        return request

    def step(self) -> Step[Request]:
        """Schedule, compute, draw the next tokens, in the engine's order."""
        before = {r: r.table.length for r in self.scheduler.running}
        step = self.scheduler.schedule()
        budget = max(self.max_prefill_tokens, self.max_mixed_prefill_tokens)
        sizes = [last - first for r, tiles in step.tiles.items() for first, last in [r.tiles[tile] for tile in tiles]]
        assert sum(sizes) - max(sizes, default=0) < budget, "pictures hold up a step"
        for request, tiles in step.tiles.items():
            assert request in self.scheduler.running
            request.features.update(dict.fromkeys(tiles, "encoded"))
        for source, target, is_global in step.copies:
            self.cells[is_global, target] = list(self._page(is_global, source))
        for work in step.scheduled.values():
            request = work.request
            assert work.begin < work.end <= request.table.length
            assert work.begin // self.chunk_size == (work.end - 1) // self.chunk_size, "a piece crosses a chunk edge"
            if request in before and request.table.length == work.end and before[request] != work.begin:
                assert before[request] > work.begin or before[request] == 0 or work.begin == 0
            for tile, (first, last) in enumerate(request.tiles):
                if first < work.end and last > work.begin:
                    assert request.features[tile] == "encoded", "tokens of a picture are read before it is encoded"
                    if last <= work.end:
                        del request.features[tile]
            tokens = request.content + request.draft
            versions = self.weights_of[request]
            del versions[work.begin :]
            versions += [self.weights] * (work.end - work.begin)
            self._write(request, tokens, versions, work.begin, work.end)
        for work in step.scheduled.values():
            self._read(work.request, work.request.content + work.request.draft, self.weights_of[work.request], work.end)
        for work in list(step.scheduled.values()):
            self._answer(work.request, work.num_logits)
        self.check()
        return step

    def _page(self, is_global: bool, page: int) -> list[Cell | None]:
        return self.cells.setdefault((is_global, page), [None] * self.page_tokens)

    def _places(self, request: Request, position: int) -> list[tuple[bool, int, int]]:
        table, size = request.table, self.page_tokens
        places = [(True, table.global_pages[position // size], position % size)]
        inside = position - table.chunk * self.chunk_size
        if inside >= 0:
            places.append((False, table.local_pages[inside // size], inside % size))
        return places

    def _write(self, request: Request, tokens: list[int], versions: list[int], begin: int, end: int) -> None:
        for position in range(begin, end):
            for is_global, page, slot in self._places(request, position):
                self._page(is_global, page)[slot] = (request.salt, versions[position], tokens[position])

    def _read(self, request: Request, tokens: list[int], versions: list[int], end: int) -> None:
        for position in range(end):
            for is_global, page, slot in self._places(request, position):
                assert self._page(is_global, page)[slot] == (request.salt, versions[position], tokens[position])

    def _answer(self, request: Request, num_logits: int) -> None:
        if not num_logits:
            self.scheduler.cache_pages(request)
            return
        right = self.rng.randint(0, num_logits - 1)  # of the draft
        accepted = request.draft[:right] + [self.rng.randint(0, 2)]
        request.draft = []
        request.content += accepted[: request.limit - len(request.content)]
        self.scheduler.truncate(request, len(request.content) - 1)
        if len(request.content) >= request.limit:
            self.scheduler.finish(request)
            return
        self.scheduler.cache_pages(request)
        room = request.limit - len(request.content) - 1
        request.draft = [self.rng.randint(0, 2) for _ in range(min(room, self.rng.choice([0, 0, 3])))]

    def check(self) -> None:
        """Every page is free, or held by exactly those who are counted."""
        tables = [request.table for request in self.scheduler.running]
        nodes = list(self.pages._nodes)
        locals_ = [node.local for node in self.pages._local_nodes]
        assert all(node.alive for node in nodes) and set(self.pages._local_nodes) <= set(nodes)
        for pool, held in (
            (self.pools[0], [p for t in tables for p in t.global_pages] + [node.page for node in nodes]),
            (
                self.pages.local_pages,
                [p for t in tables for p in t.local_pages] + [p for p in locals_ if p is not None],
            ),
        ):
            counts = Counter(held)
            assert all(pool.ref_counts[page] == counts[page] for page in range(pool.size))
            assert pool.num_free + len(counts) == pool.size
            in_tables = {p for t in tables for p in (t.global_pages if pool is self.pools[0] else t.local_pages)}
            assert pool.num_evictable == len(set(held) - in_tables)
        for request in self.scheduler.running:
            assert len(request.table.local_pages) * self.page_tokens <= self.chunk_size
        for request in [r for queue in self.scheduler.waiting.values() for r in queue]:
            assert not request.table.global_pages and not request.table.local_pages


def tiles_of(rng: random.Random, length: int) -> list[tuple[int, int]]:
    """Some stretches of the prompt, which may reach to its end."""
    cuts = sorted(rng.sample(range(length + 1), k=min(length + 1, rng.choice([0, 0, 2, 4]))))
    return list(zip(cuts[::2], cuts[1::2], strict=False))


def live_through(seed: int) -> World:
    """Requests that begin alike and unlike, pictures, drafts, cancellations, new weights, until all have ended."""
    rng = random.Random(seed)
    world = World(
        rng=rng,
        page_tokens=rng.choice([1, 2, 4]),
        max_num_seqs=rng.randint(1, 5),
        max_prefill_tokens=rng.randint(1, 40),
        max_mixed_prefill_tokens=rng.randint(1, 12),
    )
    scale = world.page_tokens
    world.num_global, world.num_local = rng.randint(48, 120) // scale, rng.randint(16, 60) // scale
    world.__post_init__()
    starts = [[rng.randint(0, 2) for _ in range(rng.randint(1, 30))] for _ in range(2)]
    for _ in range(rng.randint(5, 60)):
        if rng.random() < 0.4:
            prompt = rng.choice(starts)[: rng.randint(1, 30)] + [rng.randint(0, 2) for _ in range(rng.randint(0, 6))]
            world.ask(
                prompt,
                rng.randint(1, 12),
                caller=rng.choice("abc"),
                salt=rng.choice(["", "", "other"]),
                priority=rng.choice([0, 0, 0, 1, -1]),
                reuse=rng.random() < 0.9,
                tiles=tiles_of(rng, len(prompt)),
            )
        if rng.random() < 0.1 and world.requests:
            rng.choice(world.requests).cancelled = True
        if rng.random() < 0.02:
            world.weights += 1
            world.scheduler.reset_prefix_cache()
        world.step()
    for _ in range(3000):
        if world.scheduler.idle:
            break
        world.step()
    assert world.scheduler.idle, "a request never ended"
    assert all(
        pool.num_free + pool.num_evictable == pool.size for pool in (world.pages.global_pages, world.pages.local_pages)
    )
    return world


def test_pages_are_conserved_and_hold_what_their_request_wrote() -> None:
    for seed in (*range(80), 1419):  # in the last one two requests are at their prompt's last token, in pictures
        live_through(seed)


@pytest.mark.slow
def test_pages_are_conserved_over_ten_thousand_schedules() -> None:
    for seed in range(10_000):
        live_through(seed)


def strangers(world: World, length: int) -> list[int]:
    """A prompt that begins like no other."""
    return [world.rng.randint(0, 10**9) for _ in range(length)]


@pytest.mark.parametrize("seed", range(5))
def test_a_cancelled_request_s_pages_are_free_within_two_steps(seed: int) -> None:
    world = World(rng=random.Random(seed))
    for _ in range(8):
        world.ask(strangers(world, 20), 12)
    for _ in range(seed + 2):
        world.step()
    for request in world.requests:
        request.cancelled = True
    world.step()
    assert world.scheduler.idle
    assert all(
        pool.num_free + pool.num_evictable == pool.size for pool in (world.pages.global_pages, world.pages.local_pages)
    )


def test_callers_who_always_ask_get_the_same_whatever_they_ask() -> None:
    world = World(rng=random.Random(0), num_global=80, num_local=16)
    had, bound = Counter[str](), 2 * world.max_num_seqs * 40
    for _ in range(200):
        waiting = Counter(request.caller for queue in world.scheduler.waiting.values() for request in queue)
        for caller, length, answer in (("many small", 3, 4), ("few large", 30, 10), ("long answers", 5, 35)):
            while waiting[caller] < 10:
                world.ask(strangers(world, length), answer, caller=caller)
                waiting[caller] += 1
        for work in world.step().scheduled.values():
            had[work.request.caller] += work.end - work.begin
        assert len(had) < 3 or max(had.values()) - min(had.values()) <= bound
    assert min(had.values()) > bound


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_nobody_starves(seed: int, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a flood of others, of more priority or not, a newcomer waits for a bounded number of their tokens."""
    monkeypatch.setattr("herd.engine.scheduler.HEAD_START", 100)
    world = World(rng=random.Random(seed), num_global=80, num_local=16)
    most, floods = 40, ["x", "y", "same"]

    def flood() -> None:
        for caller in floods:
            while len(world.scheduler.waiting.get(caller, ())) < 5:
                world.ask(strangers(world, world.rng.randint(1, 25)), 15, caller=caller, priority=ahead)

    for _ in range(world.rng.randint(0, 40)):
        flood()
        world.step()
    newcomers = [world.ask(strangers(world, 25), 15, caller=caller) for caller in ("new", "same")]
    # What may come first: of each other caller what priority lets it be ahead, and what runs or is admitted meanwhile.
    bound = len(floods) * ahead * 100 + 2 * (world.max_num_seqs + len(floods)) * most
    bounds = {newcomers[0]: bound, newcomers[1]: 2 * bound + len(floods) * 5 * most}
    before, ended = world.scheduler.clock, {}
    while len(ended) < 2:
        flood()
        world.step()
        for request in newcomers:
            waited = world.scheduler.clock - before
            if request.admission is None:
                assert waited <= bounds[request]
            if request.num_charged >= request.limit - 1 and request not in ended:
                ended[request] = waited
                assert waited <= 3 * bounds[request]


def test_who_has_priority_takes_the_place_of_one_that_then_ends_all_the_same() -> None:
    world = World(rng=random.Random(0))
    lesser = [world.ask(strangers(world, 10), 30, caller="batch") for _ in range(6)]
    for _ in range(3):
        world.step()
    urgent = world.ask(strangers(world, 10), 5, caller="chat", priority=1)
    step = world.step()
    assert urgent in step.scheduled and world.scheduler.num_preempted == 1
    while not world.scheduler.idle:
        world.step()
    assert all(len(request.content) == request.limit for request in [*lesser, urgent])


@pytest.mark.parametrize("priority", [1, 2])
@pytest.mark.parametrize("over", [-1, 0])
def test_priority_lets_a_caller_be_so_far_ahead_of_another_and_no_further(priority: int, over: int) -> None:
    """One token short of its head start it takes the other's place; with all of it had, it waits."""
    world = World(rng=random.Random(0), max_num_seqs=1)
    lesser = world.ask(strangers(world, 10), 30, caller="batch", priority=-1)
    world.step()
    steps_of_priority = priority - lesser.priority
    urgent = world.ask(strangers(world, 10), 5, caller="chat", priority=priority)
    world.scheduler.served["chat"] = world.scheduler.served["batch"] + steps_of_priority * HEAD_START + over
    # A step gives who runs one token more before places are given.
    world.scheduler.served["chat"] += 1
    step = world.step()
    assert (urgent in step.scheduled) == (over < 0)
    assert world.scheduler.num_preempted == (over < 0)


@pytest.mark.parametrize("priority", [0, 1])
def test_only_more_priority_takes_a_place_whatever_the_callers_have_had(priority: int) -> None:
    world = World(rng=random.Random(0), max_num_seqs=1)
    running = world.ask(strangers(world, 10), 30, caller="batch", priority=1)
    world.step()
    world.scheduler.served["batch"] += 10 * HEAD_START
    world.ask(strangers(world, 10), 5, caller="chat", priority=priority)
    step = world.step()
    assert list(step.scheduled) == [running] and world.scheduler.num_preempted == 0


@pytest.mark.parametrize("later", [HEAD_START - 1, HEAD_START])
def test_among_one_caller_s_requests_priority_outweighs_so_many_tokens_of_waiting(later: int) -> None:
    world = World(rng=random.Random(0), max_num_seqs=1)
    world.ask(strangers(world, 10), 30)
    world.scheduler.clock += later
    urgent = world.ask(strangers(world, 10), 5, priority=1)
    world.scheduler.clock -= later
    world.scheduler.waiting[""].sort(key=lambda request: request is urgent)  # the other one is admitted first
    world.step()
    assert (urgent in world.step().scheduled) == (later < HEAD_START)


def test_tokens_are_removed_over_a_chunk_s_edge_and_into_a_shared_page() -> None:
    pages = PageManager(page_tokens=4, chunk_size=16, num_global=12, num_local=8)
    table, content = BlockTable(), list(range(100, 140))
    assert pages.match_prefix(table, "", content, 39) == []
    for end in (16, 19):
        pages.extend(table, end)
    # The local pages of the first chunk are gone: what stands before position 14 in it is computed again.
    pages.truncate(table, 14)
    assert (table.length, table.chunk, len(table.global_pages), len(table.local_pages)) == (0, 0, 0, 0)
    assert (pages.global_pages.num_free, pages.local_pages.num_free) == (12, 8)
    # To the edge itself nothing needs them.
    for end in (16, 19):
        pages.extend(table, end)
    pages.truncate(table, 16)
    assert (table.length, table.chunk, len(table.global_pages), len(table.local_pages)) == (16, 1, 4, 0)
    # Page 5 is shared from 24 tokens on; others read it, so it is not written again.
    pages.extend(table, 26)
    pages.cache_pages(table, content, 26)
    pages.truncate(table, 22)
    assert (table.length, table.num_cached, len(table.global_pages), len(table.local_pages)) == (20, 5, 5, 1)
    assert pages.global_pages.num_evictable == 1
