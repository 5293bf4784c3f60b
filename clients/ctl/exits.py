"""What llmos-ctl exits with, and how it says why: one sentence, never a traceback."""

from __future__ import annotations

import sys

from llmos.lib import errors

# One line per error class. 0 is success; 2 is also what a wrong command line gives.
EXIT_CODES: dict[type[errors.LLMOSError], int] = {
    errors.Unknown: 1,
    errors.InvalidArgument: 2,
    errors.OutOfRange: 2,
    errors.NotFound: 3,
    errors.AlreadyExists: 4,
    errors.Aborted: 4,
    errors.PermissionDenied: 5,
    errors.Unauthenticated: 5,
    errors.ResourceExhausted: 6,
    errors.FailedPrecondition: 7,
    errors.Unavailable: 8,
    errors.DeadlineExceeded: 9,
    errors.Unimplemented: 10,
    errors.DataLoss: 11,
    errors.Internal: 12,
    errors.Cancelled: 130,
}


def report(error: errors.LLMOSError, *, json: bool = False) -> int:
    """Print an error on stderr, for people or as JSON; return the exit code."""
    if json:
        import json as encoder

        members = {"reason": error.reason, "message": error.message, "details": error.details}
        print(encoder.dumps({"error": members}), file=sys.stderr)
    else:
        print(f"llmos-ctl: {error.message or error.reason}", file=sys.stderr)
    return EXIT_CODES.get(type(error), 1)
