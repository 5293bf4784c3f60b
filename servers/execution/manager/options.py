"""How versions are to be run, as people asked when they loaded them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmos.lib.errors import FailedPrecondition, InvalidArgument

_PRECISIONS = ("", "fp32", "bf16", "int8")


@dataclass(frozen=True)
class Options:
    """As LoadOptions of execution.proto; empty and 0 = by the configuration."""

    precision: str = ""
    threads: int = 0
    device: str = ""


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

        Raises InvalidArgument BAD_OPTION; FailedPrecondition LOADED_OTHERWISE.
        """
        if options.precision not in _PRECISIONS:
            raise InvalidArgument(
                "BAD_OPTION", f"precision is {options.precision[:60]!r}; it is fp32, bf16 or int8."
            )
        if options.threads > cores:
            raise InvalidArgument(
                "BAD_OPTION", f"{options.threads} threads are more than the {cores} cores here."
            )
        if loaded and self.of(ref) != options:
            raise FailedPrecondition(
                "LOADED_OTHERWISE", f"{ref} is loaded with other options; unload it first."
            )
        self._wishes[ref] = options

    def adopt(self, ref: str, options: Options) -> None:
        """Take over what an earlier manager was asked for."""
        if options != NONE:
            self._wishes[ref] = options

    def forget(self, ref: str) -> None:
        """Forget the options of a version."""
        self._wishes.pop(ref, None)


def check_device(options: Options, devices: Sequence[str]) -> None:
    """Raise InvalidArgument BAD_OPTION when the device is none of these."""
    if options.device and options.device not in devices:
        raise InvalidArgument(
            "BAD_OPTION",
            f"There is no device {options.device[:60]!r}; there are {', '.join(devices)}.",
        )


def own_cores(threads: int, pids: Iterable[int]) -> list[int]:
    """Return so many cores for a worker: those that the fewest of these processes were given.

    A process that may use all cores was given none, so two workers that each ask for one thread
    do not fight for a core.
    """
    cores = os.sched_getaffinity(0)
    given: Counter[int] = Counter()
    for pid in pids:
        try:
            may = os.sched_getaffinity(pid)
        except ProcessLookupError:
            continue
        if may < cores:
            given.update(may)
    return sorted(sorted(cores), key=lambda core: given[core])[:threads]
