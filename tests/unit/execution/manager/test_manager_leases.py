from __future__ import annotations

from llmos.servers.execution.manager.leases import Leases


def test_holders_of_an_earlier_manager_count_until_they_are_back() -> None:
    now = 0.0
    leases = Leases(lambda: now)
    leases.expect({"a@1": 2, "b@1": 0})
    assert (leases.count("a@1"), leases.count("b@1")) == (2, 0)
    with leases.hold("a@1") as revoked:
        assert leases.count("a@1") == 2  # one of them came
        now = 6.0
        assert leases.count("a@1") == 1  # the other did not
        leases.revoke("a@1")
        assert revoked.is_set() and leases.count("a@1") == 0


def test_who_unloads_by_force_waits_for_nobody() -> None:
    leases = Leases(lambda: 0.0)
    leases.expect({"a@1": 1})
    leases.revoke("a@1")
    assert leases.count("a@1") == 0
