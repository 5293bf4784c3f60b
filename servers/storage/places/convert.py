"""Pickled checkpoints to safetensors, by a process that is thrown away afterwards.

Nothing of a pickle is ever read by the storage server itself, and torch is not imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.storage import names, sources
from llmos.servers.storage.blobs.staging import unreadable
from llmos.servers.storage.disk import require_room, writing
from llmos.servers.storage.folder import BESIDE, Folder
from llmos.servers.storage.formats.kinds import Kind, kind_of
from llmos.servers.storage.names import short
from llmos.servers.storage.places.base import Meter
from llmos.servers.storage.places.incoming import Incoming
from llmos.servers.storage.sources import Source

_WORKER = "llmos.servers.storage.places.convert_worker"
_BASE_MEMORY = 8 << 30  # bytes of address space; torch alone reserves some
_BASE_S = 120.0
_BYTES_PER_S = 20 << 20
_MAX_BESIDE = 64 << 20
_INDEX = "pytorch_model.bin.index.json"
_TICK_S = 0.05


@contextlib.contextmanager
def converted(source: str, incoming: Incoming, meter: Meter) -> Iterator[Source]:
    """Yield the converted files of a checkpoint, which stay until the end.

    Raises NO_SUCH_SOURCE, NOT_A_PICKLE, CONVERSION_FAILED, MISSING_EXTRA, DISK_FULL.
    """
    path = Path(source)
    if not path.is_absolute() or "\0" in source:
        raise unreadable(Path(short(source)[1:-1]), "give its absolute path")
    try:
        pickles = _pickles(path)
        size = sum(p.stat().st_size for p in pickles)
    except OSError as exc:
        raise unreadable(Path(short(source, 200)[1:-1]), exc.strerror or "not there") from exc
    with incoming.taken(f"convert:{source}", meter) as work:
        folder = work / "files"
        with writing(work):
            folder.mkdir(exist_ok=True, mode=0o700)
            require_room(work, size)
            meter.say("converting in a process of its own")
            _run(pickles, folder / "model.safetensors", size, meter)
            _beside(path if path.is_dir() else path.parent, folder)
        found = sources.find(str(folder))
        name = names.from_path(path, folder=path.is_dir())
        yield Source(
            found.files, name, source, found.license, temporary=True, step="convert-pickle"
        )


def _pickles(path: Path) -> list[Path]:
    """Return the checkpoint's files. Raises NOT_A_PICKLE, OSError."""
    if path.is_dir():
        index = path / _INDEX
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
                found = [path / names.check_file_name(str(name)) for name in shards]
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise failed(index, "it is no index of checkpoint files") from exc
        else:
            found = [p for p in sorted(path.iterdir()) if p.is_file() and _is_pickle(p)]
        if len(found) > 1 and not index.is_file():
            raise InvalidArgument(
                "NOT_A_PICKLE", f"{path} holds {len(found)} pickled files; give the path of one."
            )
    else:
        path.stat()
        found = [path]
    if not found or not all(_is_pickle(p) for p in found):
        raise InvalidArgument(
            "NOT_A_PICKLE",
            f"{short(str(path), 200)[1:-1]} is no pickled checkpoint; import it as it is.",
        )
    return found


def _is_pickle(path: Path) -> bool:
    return path.is_file() and kind_of(path) is Kind.PICKLE


def _beside(source: Path, target: Path) -> None:
    """Copy config, tokenizer and the like, where the checkpoint is a model's folder."""
    listed = Folder(source).files
    if "config.json" not in listed:
        return
    for name, path in listed.items():
        weights = path.suffix in (".safetensors", ".bin")
        if BESIDE.fullmatch(name) and not weights and path.stat().st_size <= _MAX_BESIDE:
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_bytes(path.read_bytes())


def _run(pickles: list[Path], target: Path, size: int, meter: Meter) -> None:
    if find_spec("torch") is None or find_spec("safetensors") is None:
        raise FailedPrecondition(
            "MISSING_EXTRA",
            "The Python package torch is not installed where llmos-storage runs; run: "
            "pip install 'llmos[storage-convert]'",
        )
    limit_s = _BASE_S + size / _BYTES_PER_S
    memory = _BASE_MEMORY + 4 * size
    with contextlib.ExitStack() as stack:
        # Opened here: the worker gives up the rights to open anything of others.
        files = [stack.enter_context(path.open("rb")) for path in pickles]
        numbers = [file.fileno() for file in files]
        command = [sys.executable, "-I", "-W", "ignore", "-m", _WORKER, str(target)]
        command += [str(memory), str(int(limit_s)), *map(str, numbers)]
        errors = stack.enter_context((target.parent.parent / "errors").open("w+b"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={"PATH": os.defpath, "OMP_NUM_THREADS": "1", "HOME": str(target.parent)},
            cwd=target.parent,
            pass_fds=numbers,
            start_new_session=True,
        )
        try:
            waited = 0.0
            while process.poll() is None:
                meter.add(0)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_TICK_S)
                waited += _TICK_S
                if waited > limit_s * 2:
                    raise failed(pickles[0], f"it took over {limit_s * 2:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            errors.seek(0)
            raise failed(pickles[0], _why(process.returncode, errors.read(1 << 16)))


def _why(code: int, errors: bytes) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "it needed more time or memory than a conversion gets"
    lines = errors.decode("utf-8", "replace").strip().splitlines() or [f"exit code {code}"]
    return lines[-1][:300]


def failed(path: Path, why: str) -> InvalidArgument:
    """Return CONVERSION_FAILED."""
    return InvalidArgument(
        "CONVERSION_FAILED",
        f"{short(path.name, 100)[1:-1]} cannot be converted: {short(why, 300)[1:-1]}; ask whoever "
        "made it for safetensors.",
    )
