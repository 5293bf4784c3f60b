"""Who waits for which documents and locks, and waking them. Knows names, not contents."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType

from llmos.servers.storage.state.model import Keys


class Subscription:
    """One waiter, until it is closed (`with`). For the event loop that made it.

    `told` (0 = nothing yet) is a revision up to which nothing that it waits for is unread; it moves
    on when others' changes are committed, so a watch of what is quiet does not fall behind.
    """

    def __init__(self, hub: Hub, kind: str, tenant: str, keys: Keys) -> None:
        """See Hub.subscribe."""
        self._hub = hub
        self._about = (kind, tenant)
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._dirty = False
        self.told = 0

    def begin(self) -> int:
        """Forget the news so far; return `told`. What is read from now on has all of them."""
        with self._hub.lock:
            self._event.clear()
            self._dirty = False
            return self.told

    async def wait(self, timeout_s: float | None) -> bool:
        """Wait for news since `begin`; return False when none came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True

    def take(self, tenant: str, names: Mapping[str, Iterable[str]], revision: int) -> None:
        """Note a committed change. The hub's lock is held."""
        kind, mine = self._about
        if tenant == mine and any(self._covers(name) for name in names.get(kind, ())):
            self._dirty = True
            self.wake()
        elif not self._dirty:
            self.told = max(self.told, revision)

    def wake(self) -> None:
        """Make `wait` return."""
        self._loop.call_soon_threadsafe(self._event.set)

    def _covers(self, name: str) -> bool:
        return name.startswith(self._keys.key) if self._keys.prefix else name == self._keys.key

    def __enter__(self) -> Subscription:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Be told nothing more."""
        self._hub.drop(self)


class Hub:
    """All waiters. `stopping` is set once, when the server is about to stop."""

    def __init__(self) -> None:
        """Start with none."""
        self.lock = threading.Lock()
        self.stopping = False
        self._subscriptions: set[Subscription] = set()

    def subscribe(self, kind: str, tenant: str, keys: Keys) -> Subscription:
        """Wait for changes of kind `document` or `lock` of a tenant."""
        subscription = Subscription(self, kind, tenant, keys)
        with self.lock:
            self._subscriptions.add(subscription)
        return subscription

    def drop(self, subscription: Subscription) -> None:
        """Tell it nothing more."""
        with self.lock:
            self._subscriptions.discard(subscription)

    def tell(self, tenant: str, names: Mapping[str, Iterable[str]], revision: int) -> None:
        """Tell of a committed change, names by kind; in the order of the revisions. Any thread."""
        with self.lock:
            for subscription in self._subscriptions:
                subscription.take(tenant, names, revision)

    def stop(self) -> None:
        """Wake everybody; they find `stopping` set."""
        self.stopping = True
        with self.lock:
            for subscription in self._subscriptions:
                subscription.wake()
