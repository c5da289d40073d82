"""Allocates and frees the pages of the KV cache, and finds the prefixes that requests share. No torch.

A `BlockTable` holds one request's pages: global ones from its first token on, local ones from its current chunk on,
which are freed at the chunk's edge. The prefix cache is a tree of computed pages, one node a page, keyed by the exact
contents of the page (token ids; for a picture's tokens a digest of the picture), under one root a salt: a request with
another salt matches nothing of it, and no hash can collide. A request that begins like an earlier one shares its pages;
of a page that matches in its first tokens only, or is not full, it gets a copy (`PageCopy`), so that no request writes
to a page that others read. A prefix that ends inside a chunk needs the chunk's local pages too: a node keeps its own
for as long as there is room.

Cached pages that no request uses are evicted when pages run out, the least recently used first.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple
from weakref import WeakValueDictionary

MAX_CANDIDATES = 64
"""Children of a node that are searched for one that matches in part."""


class OutOfPages(Exception):
    """No page is free, and none can be evicted."""


class PageCopy(NamedTuple):
    """A page to copy before the next forward; copies are made in their order."""

    source: int
    target: int
    is_global: bool


class PagePool:
    """Numbered pages with reference counts. `grow(n)` is called before page n - 1 is used for the first time."""

    def __init__(self, size: int, grow: Callable[[int], None] | None = None) -> None:
        self.size, self.ref_counts = size, [0] * size
        self.num_evictable = 0
        """Pages that only the prefix cache refers to."""
        self._in_tree = [False] * size
        self._free: list[int] = []
        self._fresh = 0
        self._grow = grow

    @property
    def num_free(self) -> int:
        return self.size - self._fresh + len(self._free)

    def allocate(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            assert self._fresh < self.size
            if self._grow is not None:
                self._grow(self._fresh + 1)
            page = self._fresh
            self._fresh += 1
        self.ref_counts[page] = 1
        return page

    def retain(self, page: int) -> None:
        self.num_evictable -= self._in_tree[page] and self.ref_counts[page] == 1
        self.ref_counts[page] += 1

    def release(self, page: int) -> None:
        self.ref_counts[page] -= 1
        assert self.ref_counts[page] >= 0
        if not self.ref_counts[page]:
            self._free.append(page)
        self.num_evictable += self._in_tree[page] and self.ref_counts[page] == 1

    def retain_in_tree(self, page: int) -> None:
        """Add the prefix cache's reference to a page that a request has."""
        assert not self._in_tree[page] and self.ref_counts[page]
        self._in_tree[page] = True
        self.ref_counts[page] += 1

    def release_from_tree(self, page: int) -> None:
        """Drop the prefix cache's reference."""
        assert self._in_tree[page]
        self.num_evictable -= self.ref_counts[page] == 1
        self._in_tree[page] = False
        self.release(page)


class Node:
    """One page of a cached prefix: the tokens of `parent`'s pages, then `content`."""

    __slots__ = ("__weakref__", "alive", "children", "content", "local", "page", "parent")

    def __init__(self, parent: "Node | None", content: tuple[int, ...], page: int, local: int | None) -> None:
        self.parent, self.content, self.page, self.local = parent, content, page, local
        self.children: dict[tuple[int, ...], Node] = {}
        self.alive = True


class BlockTable:
    """The pages of one request."""

    __slots__ = ("chunk", "global_pages", "length", "local_pages", "node", "num_cached", "partial_node")

    def __init__(self) -> None:
        self.global_pages, self.local_pages = array("i"), array("i")
        self.chunk = 0
        """The chunk that `local_pages` belong to."""
        self.length = 0
        """Tokens whose keys and values are in the pages, or will be after the next forward."""
        self.num_cached = 0
        """Leading pages that are in the prefix cache; these are never written again."""
        self.node: Node | None = None
        """The node of the last of these; None: this request's pages are not cached."""
        self.partial_node: Node | None = None
        """The node of the next page, cached before it is full."""


class PageManager:
    """Allocates, shares and frees the pages of both pools."""

    def __init__(
        self,
        *,
        page_tokens: int,
        chunk_size: int,
        num_global: int,
        num_local: int,
        grow: Callable[[int], None] | None = None,
    ) -> None:
        assert chunk_size % page_tokens == 0
        self.size, self.chunk_size = page_tokens, chunk_size
        self.global_pages, self.local_pages = PagePool(num_global, grow), PagePool(num_local)
        # A root lives as long as a table or a child refers to it.
        self._roots: WeakValueDictionary[str, Node] = WeakValueDictionary()
        # Least recently used first; of the pages of one prefix the later ones come first.
        self._nodes: OrderedDict[Node, None] = OrderedDict()
        self._local_nodes: OrderedDict[Node, None] = OrderedDict()

    def num_pages(self, length: int) -> tuple[int, int]:
        """Global and local pages that a request of `length` tokens holds at most at one time."""
        return -(-length // self.size), -(-min(length, self.chunk_size) // self.size)

    def match_prefix(self, table: BlockTable, salt: str, content: Sequence[int], limit: int) -> list[PageCopy]:
        """Give an empty table the longest cached prefix of `content`, of at most `limit` tokens. Returns the copies to
        make before the next forward."""
        assert not table.global_pages and not table.local_pages
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = Node(None, (), -1, None)
        size, chain, node = self.size, [root], root
        while len(chain) * size <= limit:
            child = node.children.get(tuple(content[(len(chain) - 1) * size : len(chain) * size]))
            if child is None:
                break
            chain.append(child)
            node = child
        # Where the prefix ends inside a chunk, the chunk's local pages must be there too.
        count = len(chain) - 1
        first = count * size // self.chunk_size * self.chunk_size // size
        count = next((i for i in range(first, count) if chain[i + 1].local is None), count)
        table.chunk = count * size // self.chunk_size
        for child in chain[1 : count + 1]:
            self.global_pages.retain(child.page)
            table.global_pages.append(child.page)
        for child in chain[first + 1 : count + 1]:
            assert child.local is not None
            self.local_pages.retain(child.local)
            table.local_pages.append(child.local)
        table.node, table.num_cached, table.length = chain[count], count, count * size
        self._touch(table.node)
        return self._copy_partial_page(table, content, limit)

    def _copy_partial_page(self, table: BlockTable, content: Sequence[int], limit: int) -> list[PageCopy]:
        """Copy the cached page that matches most of the next tokens."""
        assert table.node is not None
        wanted = tuple(content[table.length : min(limit, table.length + self.size)])
        best, most = None, 0
        for child in islice(reversed(table.node.children.values()), MAX_CANDIDATES):
            agreed = next(
                (i for i, (a, b) in enumerate(zip(child.content, wanted, strict=False)) if a != b),
                min(len(child.content), len(wanted)),
            )
            if agreed > most and child.local is not None:
                best, most = child, agreed
        if best is None:
            return []
        assert best.local is not None
        # What is to be copied must not be evicted to make room for its copy.
        self.global_pages.retain(best.page)
        self.local_pages.retain(best.local)
        before = len(table.global_pages), len(table.local_pages)
        try:
            table.local_pages.append(self._allocate(self.local_pages))
            table.global_pages.append(self._allocate(self.global_pages))
        except (OutOfPages, OSError):
            self._shrink(table, *before)
            return []
        finally:
            self.global_pages.release(best.page)
            self.local_pages.release(best.local)
        table.length += most
        return [PageCopy(best.page, table.global_pages[-1], True), PageCopy(best.local, table.local_pages[-1], False)]

    def extend(self, table: BlockTable, length: int) -> None:
        """Allocate pages for the tokens up to `length`, which are in one chunk. All or nothing: raises OutOfPages, or
        what `grow` raises."""
        chunk = table.length // self.chunk_size
        assert table.length < length <= (chunk + 1) * self.chunk_size
        if chunk != table.chunk:
            self._release_local(table)
            table.chunk = chunk
        before = len(table.global_pages), len(table.local_pages)
        try:
            while len(table.global_pages) * self.size < length:
                table.global_pages.append(self._allocate(self.global_pages))
            while chunk * self.chunk_size + len(table.local_pages) * self.size < length:
                table.local_pages.append(self._allocate(self.local_pages))
        except BaseException:
            self._shrink(table, *before)
            raise
        table.length = length

    def cache_pages(self, table: BlockTable, content: Sequence[int], computed: int, *, partly: bool = False) -> None:
        """Put the first `computed` tokens of `content` in the prefix cache: full pages, with `partly` the last one
        too."""
        known, size = min(computed, len(content)), self.size
        while table.node is not None and (table.num_cached + 1) * size <= known:
            begin = table.num_cached * size
            self._evict_partial(table)
            table.node = self._cache_page(table, tuple(content[begin : begin + size]))
            table.num_cached += table.node is not None
        rest = tuple(content[table.num_cached * size : known])
        if partly and rest and table.node is not None and rest not in table.node.children:
            self._evict_partial(table)
            table.partial_node = self._cache_page(table, rest)

    def _cache_page(self, table: BlockTable, content: tuple[int, ...]) -> Node | None:
        """The node of the page after the cached ones; None where the nodes before it have been evicted."""
        assert table.node is not None
        if not table.node.alive:
            return None
        page = table.global_pages[table.num_cached]
        place = table.num_cached - table.chunk * self.chunk_size // self.size
        local = table.local_pages[place] if 0 <= place < len(table.local_pages) else None
        node = table.node.children.get(content)
        if node is None:
            node = Node(table.node, content, page, None)
            table.node.children[content] = node
            self.global_pages.retain_in_tree(page)
            self._nodes[node] = None
        if node.local is None and local is not None:
            node.local = local
            self.local_pages.retain_in_tree(local)
            self._local_nodes[node] = None
        return node

    def _evict_partial(self, table: BlockTable) -> None:
        if table.partial_node is not None and table.partial_node.alive:
            self._evict(table.partial_node)
        table.partial_node = None

    def truncate(self, table: BlockTable, length: int) -> None:
        """Drop the tokens from `length` on, and free their pages. The table may become shorter than that: it ends at a
        chunk's edge where the local pages of the chunk of `length` are freed, and at a page's where that is shared;
        what is dropped too much is computed again."""
        assert length <= table.length
        if length == table.length:
            return
        chunk = length // self.chunk_size
        if chunk != table.chunk and length % self.chunk_size:
            length = chunk * self.chunk_size
        if length < table.num_cached * self.size:
            length -= length % self.size
        if table.partial_node is not None and length < table.num_cached * self.size + len(table.partial_node.content):
            self._evict_partial(table)
        table.chunk = chunk
        self._shrink(table, -(-length // self.size), -(-(length - chunk * self.chunk_size) // self.size))
        while table.num_cached * self.size > length:
            table.num_cached -= 1
            table.node = table.node and table.node.parent
        table.length = length

    def release(self, table: BlockTable) -> None:
        """Free all pages of a request; the table cannot be used again."""
        if table.partial_node is not None and table.partial_node.alive:
            self._touch(table.partial_node)
        elif table.node is not None and table.node.alive:
            self._touch(table.node)
        self._release_local(table)
        self._shrink(table, 0, 0)

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache."""
        for root in self._roots.values():
            for node in list(root.children.values()):
                self._evict(node)
            root.alive = False
        self._roots.clear()

    def _touch(self, node: Node | None) -> None:
        while node is not None and node.parent is not None:
            self._nodes.move_to_end(node)
            if node.local is not None:
                self._local_nodes.move_to_end(node)
            node = node.parent

    def _release_local(self, table: BlockTable) -> None:
        while table.local_pages:
            self.local_pages.release(table.local_pages.pop())

    def _shrink(self, table: BlockTable, num_pages: int, num_local: int) -> None:
        while len(table.global_pages) > num_pages:
            self.global_pages.release(table.global_pages.pop())
        while len(table.local_pages) > num_local:
            self.local_pages.release(table.local_pages.pop())

    def _allocate(self, pool: PagePool) -> int:
        if pool.num_free:
            try:
                return pool.allocate()
            except OSError:  # the disk is full
                if not pool.num_evictable:
                    raise
        if not pool.num_evictable:
            raise OutOfPages
        nodes, before = self._nodes if pool is self.global_pages else self._local_nodes, pool.num_free
        while pool.num_free == before:
            node = next(iter(nodes))
            page = node.page if pool is self.global_pages else node.local
            assert page is not None
            if pool.ref_counts[page] > 1:
                nodes.move_to_end(node)  # a request uses it now
            elif pool is self.global_pages:
                self._evict(node)
            else:
                self._evict_local(node)
        return pool.allocate()

    def _evict_local(self, node: Node) -> None:
        if node.local is not None:
            self.local_pages.release_from_tree(node.local)
            node.local = None
            del self._local_nodes[node]

    def _evict(self, node: Node) -> None:
        """Remove a node and all below it from the prefix cache."""
        if node.parent is not None and node.parent.alive:
            del node.parent.children[node.content]
        below = [node]
        while below:
            gone = below.pop()
            below += gone.children.values()
            gone.children.clear()
            gone.alive = False
            self._evict_local(gone)
            self.global_pages.release_from_tree(gone.page)
            del self._nodes[gone]
