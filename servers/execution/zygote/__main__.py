"""`python -m llmos.servers.execution.zygote STATE_DIR LOG_LEVEL`: started by the manager."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

# Before the imports that read them: no thread may exist when this process forks.
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's pool; engines compute with their own threads
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime's sender thread (and its messages home)


def main() -> None:
    """Import, listen, fork."""
    import logging

    from llmos.lib import config, log
    from llmos.servers.execution.zygote.imports import preload
    from llmos.servers.execution.zygote.server import AlreadyRunning, Zygote

    state_dir, level = Path(sys.argv[1]), sys.argv[2]
    log.setup("zygote", level)
    run_dir = config.run_dir(state_dir)
    try:
        zygote = Zygote(run_dir)
    except AlreadyRunning:
        logging.info("another zygote serves this state directory")
        return
    with contextlib.suppress(ImportError):  # a part of the extra, which may be missing
        from setproctitle import setproctitle

        setproctitle(f"llmos-zygote {state_dir}")
    started = time.monotonic()
    imported, missing = preload()
    logging.info(
        "imported",
        extra={"modules": imported, "missing": missing, "seconds": time.monotonic() - started},
    )
    zygote.serve(imported, missing)


if __name__ == "__main__":
    main()
