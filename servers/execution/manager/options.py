"""How versions are to be run, as people asked when they loaded them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.execution.engine.serving.declared import MAX_INSTANCES, changed

_PRECISIONS = ("", "fp32", "bf16", "int8", "int4")


@dataclass(frozen=True)
class Options:
    """As LoadOptions of execution.proto; empty and 0 = by the configuration."""

    precision: str = ""
    threads: int = 0
    device: str = ""
    instances: int = 0
    serving: tuple[tuple[str, str], ...] = ()  # sorted


NONE = Options()


class Wishes:
    """Remembers options of versions until they are unloaded."""

    def __init__(self) -> None:
        """Start with none."""
        self._wishes: dict[str, Options] = {}

    def of(self, ref: str) -> Options:
        """Return the options of a version."""
        return self._wishes.get(ref, NONE)

    def give(self, ref: str, options: Options, *, loaded: bool, cores: int) -> None:
        """Set the options of a version that is `loaded` already or not.

        Those of a loaded one stay, but for the number of its instances, which may be all that is
        given. Raises InvalidArgument BAD_OPTION; FailedPrecondition LOADED_OTHERWISE.
        """
        if options.precision not in _PRECISIONS:
            raise InvalidArgument(
                "BAD_OPTION",
                f"precision is {options.precision[:60]!r}; it is fp32, bf16, int8 or int4.",
            )
        if options.threads > cores:
            raise InvalidArgument(
                "BAD_OPTION", f"{options.threads} threads are more than the {cores} cores here."
            )
        if options.instances > MAX_INSTANCES:
            raise InvalidArgument(
                "BAD_OPTION",
                f"{options.instances:,} instances are too many; a version may have "
                f"{MAX_INSTANCES}.",
            )
        changed({}, dict(options.serving))
        now = self.of(ref)
        if loaded and options == Options(instances=options.instances):
            options = replace(now, instances=options.instances or now.instances)
        if loaded and replace(now, instances=0) != replace(options, instances=0):
            raise FailedPrecondition(
                "LOADED_OTHERWISE", f"{ref} is loaded with other options; unload it first."
            )
        self._wishes[ref] = options

    def adopt(self, ref: str, options: Options) -> None:
        """Take over what an earlier manager was asked for."""
        if options != NONE:
            self._wishes[ref] = options

    def set(self, ref: str, options: Options) -> None:
        """Set the options of a version, as they once were."""
        self._wishes[ref] = options

    def forget(self, ref: str) -> None:
        """Forget the options of a version."""
        self._wishes.pop(ref, None)


def place(
    asked: str, declared: Sequence[str], configured: str, devices: Sequence[str], replica: int
) -> str:
    """Return the device of a version's worker `replica`; workers take devices in turn.

    asked: for the load, with commas between several. declared: by the version. devices: that there
    are. Raises InvalidArgument BAD_OPTION when one is not there.
    """
    named = [d.strip() for d in asked.split(",")] if asked else [*declared]
    for device in named:
        if device not in devices:
            raise InvalidArgument(
                "BAD_OPTION",
                f"There is no device {device[:60]!r}; there are {', '.join(devices)}.",
            )
    fastest = [d for d in devices if d.startswith("cuda:")] or ["cpu"]
    choice = named or ([configured] if configured else fastest)
    return choice[replica % len(choice)]


def own_cores(threads: int, given: Iterable[Sequence[int]]) -> list[int]:
    """Return so many cores for a worker: those that the fewest of the others were given.

    So two workers that each ask for one thread do not fight for a core.
    """
    times = Counter(core for cores in given for core in cores)
    cores = sorted(os.sched_getaffinity(0))
    return sorted(cores, key=lambda core: times[core])[:threads]


def cores_of(pid: int) -> list[int]:
    """Return the cores that a process was given; none when it has ended, or may use all."""
    try:
        may = os.sched_getaffinity(pid)
    except ProcessLookupError:
        return []
    return sorted(may) if may < os.sched_getaffinity(0) else []
