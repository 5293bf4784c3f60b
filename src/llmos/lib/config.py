"""Configuration: one frozen dataclass per process, filled from file < environment < flags.

The file is `llmos.toml` with one table per process; `LLMOS_<PROCESS>_<FIELD>` and `LLMOS_<FIELD>`
override it, `--field` overrides both. A wrong key or value stops the process with file and key.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from llmos.lib.errors import FailedPrecondition, InvalidArgument

VERSION = 1
_SUN_PATH = 100  # sockaddr_un.sun_path holds 108 bytes; leave room for the longest socket name


def option(default: Any, help: str) -> Any:
    """Declare a field of a config dataclass with its default and a help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def default_state_dir() -> Path:
    """Return where state lives unless told otherwise: $LLMOS_STATE_DIR, XDG state home."""
    if path := os.environ.get("LLMOS_STATE_DIR"):
        return Path(path).absolute()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "llmos"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What every server has."""

    state_dir: Path = option(Path(), "directory of all state (default: $LLMOS_STATE_DIR or XDG)")
    listen: str = option("", "own gRPC address (default: a Unix socket in the state directory)")
    kernel: str = option("", "kernel's address; `none` = run alone (default: its Unix socket)")
    peers: str = option("", "when alone: addresses of other servers, `storage=ADDR,memory=ADDR`")
    log_level: str = option("info", "debug, info, warning or error")

    def run_dir(self) -> Path:
        """Return the directory of sockets and process records (0700), making it if needed."""
        return run_dir(self.state_dir)

    def socket(self, name: str) -> str:
        """Return the default address of the process called `name`."""
        return socket_address(self.state_dir, name)


def socket_address(state_dir: Path, name: str) -> str:
    """Return the Unix socket address of a process of the LLM OS in `state_dir`."""
    return f"unix:{run_dir(state_dir) / name}.sock"


def run_dir(state_dir: Path) -> Path:
    """Return the 0700 directory for sockets: in the state directory, or a short one if too deep.

    Unix socket paths have at most 108 bytes, so under a deep state directory `run` becomes a link
    into the temporary directory.
    """
    path = state_dir / "run"
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if len(os.fsencode(path)) + 24 <= _SUN_PATH:
            path.mkdir(exist_ok=True, mode=0o700)
            return path
        digest = hashlib.sha256(os.fsencode(state_dir.absolute())).hexdigest()[:12]
        short = Path(tempfile.gettempdir()) / f"llmos-{os.getuid()}-{digest}"
        short.mkdir(exist_ok=True, mode=0o700)
    except OSError as exc:
        raise FailedPrecondition(
            "READ_ONLY",
            f"Cannot write the state directory {state_dir} ({exc.strerror}); make it writable or "
            "name another by --state-dir or LLMOS_STATE_DIR.",
        ) from exc
    if short.is_symlink() or short.stat().st_uid != os.getuid():
        raise FailedPrecondition(
            "UNSAFE_RUN_DIR", f"{short} belongs to somebody else; use a shorter state directory."
        )
    short.chmod(0o700)
    return short


C = TypeVar("C")


def read_file(path: Path) -> dict[str, Any]:
    """Return the tables of an `llmos.toml`.

    Raises InvalidArgument BAD_CONFIG naming the file, and the place or key that is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as exc:
        raise InvalidArgument("BAD_CONFIG", f"Cannot read {path}: {exc.strerror}.") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InvalidArgument("BAD_CONFIG", f"{path}: {exc}") from exc
    version = tables.pop("version", None)
    if version != VERSION:
        raise InvalidArgument("BAD_CONFIG", f"{path}: version = {version}, expected {VERSION}.")
    return tables


def load(
    cls: type[C],
    process: str,
    argv: Sequence[str] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    description: str = "",
) -> C:
    """Build the config of `process` from --config's table, the environment and flags.

    Raises InvalidArgument BAD_CONFIG naming where the wrong key or value was found.
    """
    env = os.environ if env is None else env
    parser = argparse.ArgumentParser(
        prog=f"llmos-{process}", description=description, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, help="llmos.toml to read first")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, field in fields.items():
        help_text = f"{field.metadata.get('help', '')} [{field.default}]"
        parser.add_argument(f"--{name.replace('_', '-')}", help=help_text.replace("%", "%%"))
    args = vars(parser.parse_args(argv))
    raw: dict[str, tuple[str, Any]] = {}
    if path := args.pop("config"):
        table = read_file(path).get(process, {})
        for key, value in table.items():
            if key not in fields:
                raise InvalidArgument(
                    "BAD_CONFIG",
                    f"{path}: [{process}] has no key {key!r}; it has {', '.join(fields)}.",
                )
            raw[key] = (f"{path}: [{process}] {key}", value)
    for name in fields:
        for var in (f"LLMOS_{name}".upper(), f"LLMOS_{process}_{name}".upper()):
            if var in env:
                raw[name] = (f"environment variable {var}", env[var])
        if args[name] is not None:
            raw[name] = (f"--{name.replace('_', '-')}", args[name])
    hints = get_type_hints(cls)
    values = {name: _convert(where, value, hints[name]) for name, (where, value) in raw.items()}
    if "state_dir" in fields:
        values["state_dir"] = Path(values.get("state_dir") or default_state_dir()).absolute()
    return cls(**values)


def _convert(where: str, value: Any, hint: Any) -> Any:
    try:
        if hint is bool:
            if isinstance(value, bool):
                return value
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if hint in (int, float, str, Path):
            if isinstance(value, bool) or not isinstance(value, (int, float, str, Path)):
                raise TypeError(value)
            return hint(value)
    except (ValueError, TypeError, KeyError):
        pass
    else:
        return value
    raise InvalidArgument("BAD_CONFIG", f"{where} = {value!r} is not a valid {hint.__name__}.")


def load_or_exit(cls: type[C], process: str, description: str) -> C:
    """As `load` from sys.argv, but print the error and exit 2 as a command line tool does."""
    try:
        return load(cls, process, description=description)
    except InvalidArgument as exc:
        print(f"llmos-{process}: {exc}", file=sys.stderr)
        sys.exit(2)
