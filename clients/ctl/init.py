"""`llmos-ctl init`: a new server of one's own, which attaches, serves and passes its test."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from llmos.clients.ctl.session import Session, command
from llmos.lib.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument

_TEMPLATES = Path(__file__).parent / "scaffold"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_SERVERS = {"kernel", "init", "storage", "memory", "execution", "optimizer", "gateway"}
_TAKEN = _SERVERS | {"llmos", "grpc", "server"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, examples=["llmos-ctl init greeter && cd greeter && pytest"])(init)


def init(
    session: Session,
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits and _.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where to make it. [default: ./NAME]", show_default=False)
    ] = None,
) -> None:
    """Make a new server of your own in Python: proto, server, test and README.

    It needs grpcio-tools to generate the stubs (pip install 'llmos[scaffold]').
    """
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise InvalidArgument(
            "BAD_NAME",
            f"{name[:60]!r} cannot be its name; use small letters, digits and _, and not "
            f"{', '.join(sorted(_TAKEN))}.",
        )
    if find_spec("grpc_tools") is None:
        raise FailedPrecondition(
            "MISSING_EXTRA", "grpcio-tools is not installed; pip install 'llmos[scaffold]'."
        )
    place = (folder or Path(name)).absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise AlreadyExists("NOT_EMPTY", f"{place} is there already; name another by --folder.")
    place.mkdir(parents=True, exist_ok=True)
    title = "".join(part.capitalize() for part in name.split("_"))
    for template in sorted(_TEMPLATES.glob("*.txt")):
        text = template.read_text()
        for word, value in (("name", name), ("Title", title), ("folder", str(place))):
            text = text.replace(f"@{word}@", value)
        file = f"{name}.proto" if template.stem == "service.proto" else template.stem
        (place / file).write_text(text)
    _generate(place, name)
    files = sorted(file.name for file in place.iterdir())
    said = f"Made {name} in {place}; try it: cd {place} && pytest"
    session.out.say(said, {"name": name, "folder": str(place), "files": files})


def _generate(place: Path, name: str) -> None:
    from grpc_tools import protoc

    flags = [f"-I{place}", f"--python_out={place}", f"--grpc_python_out={place}", f"{name}.proto"]
    if protoc.main(["protoc", *flags]):
        raise Internal("PROTOC_FAILED", f"protoc does not take {place}/{name}.proto; see above.")
