"""Which pages of the cache are free, who holds them, and which prefixes requests share. No torch.

A `BlockTable` is one request's pages: global ones from its first token on, local ones from its current chunk on,
released at the chunk's edge. What has been computed is entered in a tree, one node a page, by the page's exact contents
(token ids; for a picture's tokens a digest of the picture), under a root that names the tenant: who gives another salt
finds nothing of it, and no hash can collide. A request that begins like an earlier one shares its pages; of a page that
agrees in its first tokens only, or is not full, it gets a copy (`Copy`), so that nobody writes where others read. A
prefix that ends inside a chunk needs the chunk's local pages too: a node keeps its own for as long as there is room.

The tree's pages are evicted when others need room, the least recently used first.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple
from weakref import WeakValueDictionary

MOST_TRIED = 64
"""Children of a node that are looked through for one that agrees in part."""


class OutOfPages(Exception):
    """Nothing is free and nothing can be evicted."""


class Copy(NamedTuple):
    """A page to be copied before the next forward, in the order in which the copies were asked for."""

    source: int
    target: int
    is_global: bool


class PagePool:
    """Numbered pages with reference counts. `grow(n)` is called before page n - 1 is used for the first time."""

    def __init__(self, size: int, grow: Callable[[int], None] | None = None) -> None:
        self.size, self.ref_counts = size, [0] * size
        self.num_evictable = 0
        """Pages that the tree alone holds."""
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
        """The tree becomes a holder, beside the one who has it."""
        assert not self._in_tree[page] and self.ref_counts[page]
        self._in_tree[page] = True
        self.ref_counts[page] += 1

    def release_from_tree(self, page: int) -> None:
        """The tree is a holder no more."""
        assert self._in_tree[page]
        self.num_evictable -= self.ref_counts[page] == 1
        self._in_tree[page] = False
        self.release(page)


class Node:
    """One page of a known prefix: the tokens of `parent`'s pages, then `content`."""

    __slots__ = ("__weakref__", "alive", "children", "content", "local", "page", "parent")

    def __init__(self, parent: "Node | None", content: tuple[int, ...], page: int, local: int | None) -> None:
        self.parent, self.content, self.page, self.local = parent, content, page, local
        self.children: dict[tuple[int, ...], Node] = {}
        self.alive = True


class BlockTable:
    """The pages of one request."""

    __slots__ = ("chunk", "entered", "global_pages", "length", "local_pages", "node", "partial")

    def __init__(self) -> None:
        self.global_pages, self.local_pages = array("i"), array("i")
        self.chunk = 0
        """The chunk that `local` belongs to."""
        self.length = 0
        """Tokens whose keys and values are in the pages, or will be after the next forward."""
        self.entered = 0
        """Pages that the tree knows; these are never written again."""
        self.node: Node | None = None
        """The node of the last of these; None: this request's pages are not to be shared."""
        self.partial: Node | None = None
        """The node of the page after, which is not full."""


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

    def needs(self, length: int) -> tuple[int, int]:
        """Most pages of both kinds that a request of `length` tokens holds at one time."""
        return -(-length // self.size), -(-min(length, self.chunk_size) // self.size)

    def begin(self, table: BlockTable, salt: str, content: Sequence[int], limit: int) -> list[Copy]:
        """Give an empty table the longest known prefix of `content` of at most `limit` tokens."""
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
        table.node, table.entered, table.length = chain[count], count, count * size
        self._touch(table.node)
        return self._begin_within_page(table, content, limit)

    def _begin_within_page(self, table: BlockTable, content: Sequence[int], limit: int) -> list[Copy]:
        """Copy the page that agrees in most of the tokens that come next."""
        assert table.node is not None
        wanted = tuple(content[table.length : min(limit, table.length + self.size)])
        best, most = None, 0
        for child in islice(reversed(table.node.children.values()), MOST_TRIED):
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
            self._cut(table, *before)
            return []
        finally:
            self.global_pages.release(best.page)
            self.local_pages.release(best.local)
        table.length += most
        return [Copy(best.page, table.global_pages[-1], True), Copy(best.local, table.local_pages[-1], False)]

    def extend(self, table: BlockTable, length: int) -> None:
        """Pages for tokens up to `length`, in the same chunk. All or nothing; OutOfPages, or what `grow` raises."""
        chunk = table.length // self.chunk_size
        assert table.length < length <= (chunk + 1) * self.chunk_size
        if chunk != table.chunk:
            self._drop_local(table)
            table.chunk = chunk
        before = len(table.global_pages), len(table.local_pages)
        try:
            while len(table.global_pages) * self.size < length:
                table.global_pages.append(self._allocate(self.global_pages))
            while chunk * self.chunk_size + len(table.local_pages) * self.size < length:
                table.local_pages.append(self._allocate(self.local_pages))
        except BaseException:
            self._cut(table, *before)
            raise
        table.length = length

    def enter(self, table: BlockTable, content: Sequence[int], computed: int, *, partly: bool = False) -> None:
        """Enter the first `computed` tokens of `content` in the tree: full pages, with `partly` the last one too."""
        known, size = min(computed, len(content)), self.size
        while table.node is not None and (table.entered + 1) * size <= known:
            begin = table.entered * size
            self._forget_partial(table)
            table.node = self._enter_page(table, tuple(content[begin : begin + size]))
            table.entered += table.node is not None
        rest = tuple(content[table.entered * size : known])
        if partly and rest and table.node is not None and rest not in table.node.children:
            self._forget_partial(table)
            table.partial = self._enter_page(table, rest)

    def _enter_page(self, table: BlockTable, content: tuple[int, ...]) -> Node | None:
        """The node of the page after the entered ones; None where the nodes before it have been evicted."""
        assert table.node is not None
        if not table.node.alive:
            return None
        page = table.global_pages[table.entered]
        place = table.entered - table.chunk * self.chunk_size // self.size
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

    def _forget_partial(self, table: BlockTable) -> None:
        if table.partial is not None and table.partial.alive:
            self._evict(table.partial)
        table.partial = None

    def truncate(self, table: BlockTable, length: int) -> None:
        """Take back tokens from `length` on. The table may come out shorter: where the chunk of `length` has been left,
        at its beginning, and where the page is shared, at the page's; what is cut too much is computed again."""
        assert length <= table.length
        if length == table.length:
            return
        chunk = length // self.chunk_size
        if chunk != table.chunk and length % self.chunk_size:
            length = chunk * self.chunk_size
        if length < table.entered * self.size:
            length -= length % self.size
        if table.partial is not None and length < table.entered * self.size + len(table.partial.content):
            self._forget_partial(table)
        table.chunk = chunk
        self._cut(table, -(-length // self.size), -(-(length - chunk * self.chunk_size) // self.size))
        while table.entered * self.size > length:
            table.entered -= 1
            table.node = table.node and table.node.parent
        table.length = length

    def release(self, table: BlockTable) -> None:
        """Give all pages back; the table is of no use any more."""
        if table.partial is not None and table.partial.alive:
            self._touch(table.partial)
        elif table.node is not None and table.node.alive:
            self._touch(table.node)
        self._drop_local(table)
        self._cut(table, 0, 0)

    def forget_prefixes(self) -> None:
        """Empty the tree."""
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

    def _drop_local(self, table: BlockTable) -> None:
        while table.local_pages:
            self.local_pages.release(table.local_pages.pop())

    def _cut(self, table: BlockTable, num_pages: int, num_local: int) -> None:
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
                nodes.move_to_end(node)  # somebody uses it now
            elif pool is self.global_pages:
                self._evict(node)
            else:
                self._forget_local(node)
        return pool.allocate()

    def _forget_local(self, node: Node) -> None:
        if node.local is not None:
            self.local_pages.release_from_tree(node.local)
            node.local = None
            del self._local_nodes[node]

    def _evict(self, node: Node) -> None:
        """Take a node out of the tree, and what hangs on it."""
        if node.parent is not None and node.parent.alive:
            del node.parent.children[node.content]
        below = [node]
        while below:
            gone = below.pop()
            below += gone.children.values()
            gone.children.clear()
            gone.alive = False
            self._forget_local(gone)
            self.global_pages.release_from_tree(gone.page)
            del self._nodes[gone]
