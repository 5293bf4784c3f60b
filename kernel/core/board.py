"""Publish and subscribe, without I/O or clock. See events.proto for what is promised."""

from __future__ import annotations

import fnmatch
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from llmos.api.kernel.v1 import events_pb2 as pb
from llmos.lib.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted

MAX_PAYLOAD = 64 << 10
MAX_PENDING = 10_000
KEPT_S = 60.0  # how long a named subscription without a stream is kept
_PATTERN_CHARACTERS = frozenset("*?[]")


class Subscription:
    """What one subscriber is to get. `wake` is called when there is something to take."""

    def __init__(self, request: pb.SubscribeRequest, wake: Callable[[], None]) -> None:
        """Start with nothing pending. Raises InvalidArgument BAD_PATTERN."""
        self.patterns = tuple(request.patterns)
        if not 1 <= len(self.patterns) <= 100 or not all(self.patterns):
            raise InvalidArgument("BAD_PATTERN", "Subscribe to 1 to 100 patterns, e.g. `model.*`.")
        self.name = request.name
        self.wake: Callable[[], None] | None = wake
        self.gone_at = 0.0  # when its stream broke
        self._limit = min(request.max_pending or 1000, MAX_PENDING)
        self._ack_s = request.ack_timeout_s or 10.0
        self._pending: deque[pb.SubscribeResponse] = deque()
        # Not acknowledged, oldest first; with the time when to send it again.
        self._sent: dict[int, tuple[pb.SubscribeResponse, float]] = {}
        self._missed = 0
        self._next = 1

    def offer(self, topic: str, payload: bytes, publisher: str) -> bool:
        """Take an event if a pattern matches; return whether one did."""
        if not any(fnmatch.fnmatchcase(topic, p) for p in self.patterns):
            return False
        event = pb.SubscribeResponse(
            id=self._next, topic=topic, payload=payload, publisher=publisher
        )
        self._next += 1
        self._pending.append(event)
        if len(self._pending) + len(self._sent) > self._limit:
            if self._sent:
                del self._sent[next(iter(self._sent))]
            else:
                self._pending.popleft()
            self._missed += 1
        if self.wake is not None:
            self.wake()
        return True

    def take(self, now: float) -> pb.SubscribeResponse | None:
        """Return the next event to send: one that is due again, or a new one."""
        event, again_at = next(iter(self._sent.values()), (None, 0.0))
        if event is not None and again_at <= now:
            del self._sent[event.id]
            event.redelivered += 1
        elif self._pending:
            event = self._pending.popleft()
            event.missed, self._missed = self._missed, 0
        else:
            return None
        if self.name:
            self._sent[event.id] = event, now + self._ack_s
        return event

    def next_due(self) -> float | None:
        """Return when something not acknowledged is due again."""
        return next((again_at for _, again_at in self._sent.values()), None)

    def acknowledge(self, ids: Iterable[int]) -> None:
        """Forget events."""
        for number in ids:
            self._sent.pop(number, None)

    def resume(self, wake: Callable[[], None]) -> None:
        """Take a new stream: what was not acknowledged is due at once."""
        self.wake = wake
        self._sent = {number: (event, 0.0) for number, (event, _) in self._sent.items()}


@dataclass
class Board:
    """All subscriptions."""

    _all: list[Subscription] = field(default_factory=list)

    def publish(self, topic: str, payload: bytes, publisher: str, now: float) -> int:
        """Give an event to whoever wants it; return how many that are.

        Raises InvalidArgument BAD_TOPIC, ResourceExhausted EVENT_TOO_LARGE.
        """
        if not 1 <= len(topic) <= 256 or _PATTERN_CHARACTERS & set(topic):
            raise InvalidArgument("BAD_TOPIC", "A topic is a dotted name of up to 256 characters.")
        if len(payload) > MAX_PAYLOAD:
            raise ResourceExhausted(
                "EVENT_TOO_LARGE", f"An event carries at most {MAX_PAYLOAD >> 10} KiB."
            )
        self._all = [s for s in self._all if s.wake is not None or now - s.gone_at < KEPT_S]
        return sum(s.offer(topic, payload, publisher) for s in self._all)

    def subscribe(self, request: pb.SubscribeRequest, wake: Callable[[], None]) -> Subscription:
        """Return a subscription, the old one where its name is known.

        Raises InvalidArgument BAD_PATTERN, AlreadyExists NAME_TAKEN.
        """
        fresh = Subscription(request, wake)
        old = self._named(request.name)
        if old is None:
            self._all.append(fresh)
            return fresh
        if old.wake is not None:
            raise AlreadyExists("NAME_TAKEN", f"A stream of {request.name!r} is open already.")
        old.patterns = fresh.patterns
        old.resume(wake)
        return old

    def leave(self, subscription: Subscription, now: float) -> None:
        """Its stream has ended; a named one is kept for a while."""
        subscription.wake, subscription.gone_at = None, now
        if not subscription.name:
            self._all.remove(subscription)

    def acknowledge(self, name: str, ids: Iterable[int]) -> None:
        """Forget events of a named subscription. Raises NotFound NO_SUCH_SUBSCRIPTION."""
        if (subscription := self._named(name)) is None:
            raise NotFound("NO_SUCH_SUBSCRIPTION", f"There is no subscription called {name!r}.")
        subscription.acknowledge(ids)

    def _named(self, name: str) -> Subscription | None:
        return next((s for s in self._all if name and s.name == name), None)
