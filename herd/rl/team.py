"""Workers outside of this process, as one `Worker`: a group stays with the one that has the fewest, new weights go to
all, and one that ends is started again with the newest weights.

The groups that it had are lost: `draw` says so, and its caller draws them again, with the same seeds.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from herd.errors import HerdError
from herd.rl.draw import in_thread
from herd.rl.journal import Admitted
from herd.rl.record import Group
from herd.rl.worker import WorkerLost

MOST_LOST = 3
"""As many workers may end without any group in between, for each that there is."""


class Member(Protocol):
    """One worker. What waits for it raises WorkerLost once it has ended."""

    async def draw(self, admitted: Admitted, drawn: Callable[[], None]) -> Group: ...

    def load(self, version: int, weights: Any) -> Callable[[], str]:
        """Begin to load what `Ground.put` gave; the function waits, and returns the digest."""

    def kill(self) -> None:
        """End it at once."""


class Ground(Protocol):
    """Where workers run."""

    def start(self) -> Member: ...

    def put(self, tensors: Mapping[str, Tensor]) -> Any:
        """Lay weights where all members can read them; those before may be overwritten."""


class Team:
    """See the module."""

    def __init__(self, ground: Ground, number: int) -> None:
        self._ground = ground
        self._members = [ground.start() for _ in range(number)]
        self._busy = [0] * number
        """Groups that each draws."""
        self._gone: set[Member] = set()
        self._weights: tuple[int, Any, str] | None = None
        self._num_lost = 0
        self._closed = threading.Event()
        self._lock = threading.RLock()
        """Held while weights are loaded or a worker is replaced."""

    async def draw(self, admitted: Admitted, drawn: Callable[[], None]) -> Group:
        place = min(range(len(self._members)), key=self._busy.__getitem__)
        self._busy[place] += 1
        try:
            if self._members[place] in self._gone:
                await in_thread(self._replace_gone, None)
            member = self._members[place]
            try:
                group = await member.draw(admitted, drawn)
            except WorkerLost:
                self._gone.add(member)
                raise
            self._num_lost = 0
            return group
        finally:
            self._busy[place] -= 1

    def load(self, version: int, tensors: Mapping[str, Tensor]) -> str:
        with self._lock:
            self._replace_gone()
            weights = self._ground.put(tensors)
            waits = {member: member.load(version, weights) for member in self._members}
            digests = set()
            for member, wait in waits.items():
                try:
                    digests.add(wait())
                except WorkerLost:
                    self._gone.add(member)
            if not digests:  # all have gone: the first that is started again says what it holds
                self._weights = None
                self._replace_gone()
                return self.load(version, tensors)
            if len(digests) > 1:
                raise HerdError(f"the rollout workers hold different weights for version {version}: {sorted(digests)}")
            [digest] = digests
            self._weights = version, weights, digest
            self._replace_gone()
            return digest

    def close(self) -> None:
        self._closed.set()
        for member in self._members:
            member.kill()

    def _replace_gone(self) -> None:
        """Start workers for those that have ended, and give them the weights. Raises HerdError where they end again
        and again."""
        with self._lock:
            for place, member in enumerate(self._members):
                while member in self._gone:
                    if self._closed.is_set():
                        raise HerdError("the rollouts were closed")
                    self._gone.remove(member)
                    member.kill()
                    self._num_lost += 1
                    if self._num_lost > MOST_LOST * len(self._members):
                        raise HerdError(
                            f"rollout workers ended {self._num_lost} times in a row before a group was drawn, most "
                            "likely out of memory: close other programs or lower slots, then re-run the same command "
                            "to resume"
                        )
                    print("rl: a rollout worker has ended; another one draws its groups again", file=sys.stderr)
                    member = self._members[place] = self._ground.start()
                    if self._closed.is_set():
                        member.kill()
                    self._reload(member)

    def _reload(self, member: Member) -> None:
        if self._weights is None:
            return
        version, weights, digest = self._weights
        try:
            held = member.load(version, weights)()
        except WorkerLost:
            self._gone.add(member)
            return
        if held != digest:
            raise HerdError(f"a new rollout worker holds other weights ({held[:12]}) than those of version {version}")
