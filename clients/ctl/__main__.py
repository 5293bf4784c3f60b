"""llmos-ctl: the command line of LLM OS."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llmos.lib.errors import Cancelled, LLMOSError
from llmos.lib.extras import needed

try:
    with needed("ctl"):
        from llmos.clients.ctl.app import build
        from llmos.clients.ctl.exits import report
except KeyboardInterrupt:  # as early as that: nothing was done yet
    print("llmos-ctl: Interrupted.", file=sys.stderr)
    sys.exit(130)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit; errors become one sentence and an exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    json = "json" in words or "--output=json" in words or "-ojson" in words
    try:
        build()(words, prog_name="llmos-ctl")
    except LLMOSError as exc:
        sys.exit(report(exc, json=json))
    except KeyboardInterrupt:
        sys.exit(report(Cancelled("CANCELLED", "Interrupted."), json=json))
    except Exception as exc:  # the outermost place: whatever happened, people get one sentence
        import logging
        import os

        from llmos.lib.rpc import from_exception

        if not os.environ.get("LLMOS_DEBUG"):  # with it, a bug of ours is logged with its traceback
            logging.disable()
        sys.exit(report(from_exception(exc), json=json))


if __name__ == "__main__":
    main()
