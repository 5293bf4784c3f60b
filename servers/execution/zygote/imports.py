"""What the zygote imports, so that a worker starts with it."""

from __future__ import annotations

import gc
import importlib
import logging
import os
from pathlib import Path

# A lock that another thread holds at a fork is held for ever in the child: nothing may be imported
# here that starts threads, and nothing made that does. grpc is imported (its threads come with its
# first channel or server, which only workers make), so that each worker neither takes the time nor
# holds the memory of its modules.
MODULES = (
    "numpy",
    "numpy.random",  # a sampler's; NumPy itself imports it only then
    "torch",
    "onnxruntime",
    "tokenizers",
    "safetensors.numpy",
    "gguf",
    "jinja2.sandbox",
    "uvloop",
    "psutil",
    "asyncio",
    "concurrent.futures.thread",
    "google.rpc.error_details_pb2",
    "llmos.api.execution.v1.execution_pb2",
    "llmos.api.execution.v1.worker_pb2",
    "llmos.api.inference.open_inference_pb2",
    "llmos.api.kernel.v1.admin_pb2",
    "llmos.lib.config",
    "llmos.lib.host",
    "llmos.lib.log",
    "llmos.lib.status",
    "setproctitle",
    "llmos.servers.execution.worker.birth",
    "llmos.servers.execution.engine.torch.engine",
    "llmos.servers.execution.engine.onnx.engine",
    "llmos.servers.execution.engine.module.engine",
    "llmos.servers.execution.engine.python.engine",
    "llmos.servers.execution.worker.serve",
)

log = logging.getLogger(__name__)


def preload() -> tuple[list[str], list[str]]:
    """Import all that is installed; return the names of what is and what is missing.

    Raises RuntimeError when that has started a thread: a fork would not be safe.
    """
    imported, missing = [], []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError as exc:
            # An extra that is not installed; the worker that needs it says so to its caller.
            log.warning("cannot import", extra={"wanted": name, "cause": str(exc)})
            missing.append(name)
        else:
            imported.append(name)
    threads = threads_of(os.getpid())
    if len(threads) > 1:
        raise RuntimeError(f"an import has started threads: {threads}")
    # Objects that exist now live in pages shared with every worker: keep the collector off them.
    gc.collect()
    gc.freeze()
    return imported, missing


def threads_of(pid: int) -> list[str]:
    """Return the names of the threads of a process."""
    return [(t / "comm").read_text().strip() for t in Path(f"/proc/{pid}/task").iterdir()]
