"""What a call is and for whom: method, key, caller, tenant, class, deadline, parent."""

from __future__ import annotations

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.limits import Limits
from llmos.kernel.core.scheduler import Scheduler
from llmos.kernel.core.state import Call, PortState, Service
from llmos.lib.errors import Cancelled, ResourceExhausted, Unimplemented
from llmos.lib.methods import UNKNOWN, Method
from llmos.lib.route import string_field

NORMAL, BATCH = int(pb.CALL_CLASS_NORMAL), int(pb.CALL_CLASS_BATCH)
_ENDLESS_US = 10**15  # over thirty years: no deadline
_MAX_PATHS = 10_000


class Intake:
    """Describes new calls. Owns nothing but a cache of method paths."""

    def __init__(self, scheduler: Scheduler, limits: Limits) -> None:
        """Start with an empty cache."""
        self._scheduler = scheduler
        self._limits = limits
        self._paths: dict[str, tuple[Service, Method, str]] = {}  # of exported services

    def forget(self) -> None:
        """The methods of a service have changed."""
        self._paths.clear()

    def describe(self, call: Call, envelope: pb.Envelope, opened: pb.Open) -> None:
        """Set service, method and key. Raises Unimplemented, InvalidArgument BAD_MESSAGE."""
        known = self._paths.get(call.path) or self._resolve(call.path)
        call.service, method, call.path = known  # one string for all calls of a method
        call.method = method
        call.replayable = method.idempotent
        call.affinity = opened.affinity
        call.key = opened.key
        if method.route and not call.key:
            cut = bool(envelope.flags & pb.FLAG_MORE)
            call.key = string_field(envelope.payload, method.route, cut)

    def _resolve(self, path: str) -> tuple[Service, Method, str]:
        name, _, method = path[1:].rpartition("/")
        if not path.startswith("/") or not name or not method:
            raise Unimplemented("NO_SUCH_METHOD", f"{path!r} is not /package.Service/Method.")
        service = self._scheduler.service(name)
        found = service.methods.get(path, UNKNOWN)
        if service.methods and found is UNKNOWN:
            raise Unimplemented(
                "NO_SUCH_METHOD",
                f"{name} has no method {method!r}; it has "
                f"{', '.join(m.rpartition('/')[2] for m in service.methods)}.",
            )
        if service.seen and len(self._paths) < _MAX_PATHS:
            self._paths[path] = (service, found, path)
        return service, found, path

    def inherit(self, call: Call, port: PortState, opened: pb.Open, now: float) -> None:
        """Set caller, tenant, class, deadline and parent: the parent's, or no better.

        Raises Cancelled PARENT_ENDED, ResourceExhausted NESTED_TOO_DEEP.
        """
        requested: int = opened.call_class
        identity = port.identity
        # Plain clients all come by the kernel's own port, whoever they are.
        named = opened.tenant if identity.delegates and not port.own else ""
        call.tenant = named or identity.tenant
        best = identity.best_class
        call.caller = (opened.caller if port.own else "") or port.instance
        if 0 < (timeout := opened.timeout_us) < _ENDLESS_US:
            call.deadline = now + timeout / 1e6
        if parent_id := opened.parent:
            parent = self._adopt(call, port.serving.get(parent_id), parent_id)
            call.tenant = parent.tenant or call.tenant
            best = max(best, parent.call_class)
            requested = requested or parent.call_class
            if parent.deadline is not None:
                call.deadline = min(parent.deadline, call.deadline or parent.deadline)
        call.call_class = min(max(requested or NORMAL, best), BATCH)

    def _adopt(self, call: Call, parent: Call | None, parent_id: int) -> Call:
        if parent is None or parent.server_id != parent_id:
            raise Cancelled(
                "PARENT_ENDED", "The call that this one was made for has ended or is not yours."
            )
        if parent.depth >= self._limits.max_depth:
            raise ResourceExhausted(
                "NESTED_TOO_DEEP",
                f"The call is the last of a chain of {parent.depth + 1} nested calls; look for "
                "servers that call one another in a circle.",
            )
        call.parent = parent
        call.depth = parent.depth + 1
        if parent.children is None:
            parent.children = {}
        parent.children[call] = None
        return parent
