"""What may be said about a version when it is registered."""

from __future__ import annotations

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.model import Draft
from llmos.servers.storage.names import check_name, check_text, require_version
from llmos.servers.storage.registry import tags

_MOST = 1000  # parents, data sets, metrics
_LONGEST = 4096  # characters of a text
_LONGEST_NAME = 256


def draft(version: Draft) -> None:
    """Raise InvalidArgument BAD_NAME, BAD_MANIFEST or BAD_TAG unless all is in bounds."""
    check_name(version.name)
    made = version.lineage
    for what, items in (
        ("parents", made.parents),
        ("data sets", made.datasets),
        ("metrics", version.metrics),
    ):
        if len(items) > _MOST:
            raise InvalidArgument(
                "BAD_MANIFEST", f"{len(items)} {what} are too many: a version has up to {_MOST}."
            )
    for ref in (*made.parents, *made.datasets):
        require_version(ref)
    for what, text in (("source", made.source), ("step", made.step), ("code", made.code)):
        check_text(text, what, _LONGEST, "BAD_MANIFEST")
    for what, text in (("job", made.job), ("request id", version.request_id)):
        check_text(text, what, _LONGEST_NAME, "BAD_MANIFEST")
    for metric in version.metrics:
        check_text(metric.name, "name of a metric", _LONGEST_NAME, "BAD_MANIFEST")
        check_text(metric.unit, "unit", _LONGEST_NAME, "BAD_MANIFEST")
    tags.check(version.tags)
