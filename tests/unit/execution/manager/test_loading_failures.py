"""What a listing says of loads that failed, with starters that only refuse."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import Mock

import pytest

from llmos.lib.errors import LLMOSError, Unavailable
from llmos.servers.execution.manager.loading import Loads
from llmos.servers.execution.manager.model import Asker, Version
from llmos.servers.execution.manager.table import Table


class Refuses:
    """A starter that raises what comes next."""

    def __init__(self, *errors: LLMOSError) -> None:
        self._errors = list(errors)

    async def start(self, *_: Any) -> None:
        raise self._errors.pop(0)


async def test_a_wait_that_will_be_over_is_not_kept_for_listings() -> None:
    starter = Refuses(
        Unavailable("LOAD_FAILED", "m@1 cannot be loaded: it fell."),
        Unavailable("CRASH_LOOP", "m@1 is tried next in 4 s; last: it fell"),
    )
    endings = Mock(running={})
    loads = Loads(Table(), cast(Any, starter), endings, Mock(), Mock())
    for reason in ("LOAD_FAILED", "CRASH_LOOP"):
        with pytest.raises(Unavailable) as caught:
            await loads.one(Version("m", 1, task="generate"), 0, "", False, Asker())
        assert caught.value.reason == reason
        assert loads.failures == {"m@1": "m@1 cannot be loaded: it fell."}
