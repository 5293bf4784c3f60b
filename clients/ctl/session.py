"""One invocation: the common options, and the channels to the kernel and to init."""

from __future__ import annotations

import contextlib
import functools
import inspect
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from llmos.clients.ctl.output import Output, Printer, printer
from llmos.lib.config import default_state_dir, run_dir
from llmos.lib.errors import Unavailable

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")
MAX_MESSAGE = 64 << 20
UINT32 = 2**32 - 1  # the largest number that a field of that type holds
UINT64 = 2**64 - 1
QUICK_S = 30.0  # time limit of calls that only look something up
_CONNECT_S = 5.0
_LISTENS_S = 30.0  # for a process of ours that listens: it is there, however busy the machine is
# A person waits: these calls go before batch work.
INTERACTIVE = (("llmos-class", "interactive"),)

AddressOption = Annotated[
    str | None,
    typer.Option(
        help="The kernel's address, unix:PATH or HOST:PORT. [env: LLMOS_ADDRESS; default: the "
        "Unix socket in the state directory]",
        show_default=False,
        rich_help_panel="Common options",
    ),
]
StateDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Where this LLM OS keeps its state. [env: LLMOS_STATE_DIR]",
        show_default=False,
        rich_help_panel="Common options",
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Give up after so many seconds. [default: 30 for look-ups, else none]",
        show_default=False,
        rich_help_panel="Common options",
    ),
]
OutputOption = Annotated[
    Output | None,
    typer.Option(
        "-o",
        "--output",
        help="How to print the result.",
        show_default="table",
        rich_help_panel="Common options",
    ),
]
_COMMON: dict[str, Any] = {
    "address": AddressOption,
    "state_dir": StateDirOption,
    "timeout": TimeoutOption,
    "output": OutputOption,
}


_WatchOption = Annotated[
    float | None,
    typer.Option(
        min=0.1, metavar="SECONDS", help="Show it again every so many seconds, until Ctrl-C."
    ),
]


@dataclass
class Options:
    """The common options; None = not given."""

    address: str | None = None
    state_dir: Path | None = None
    timeout: float | None = None
    output: Output | None = None

    def over(self, other: Options) -> Options:
        """Return these options, with those of `other` where none was given."""
        return Options(
            self.address or other.address,
            self.state_dir or other.state_dir,
            self.timeout or other.timeout,
            self.output or other.output,
        )


class Session:
    """Owns the channels of one invocation."""

    def __init__(self, options: Options) -> None:
        """Open nothing yet."""
        import os

        self.state_dir = (options.state_dir or default_state_dir()).absolute()
        self.given_address = options.address or os.environ.get("LLMOS_ADDRESS") or ""
        self.output = options.output or Output.TABLE
        self._timeout = options.timeout
        self._channels: dict[str, grpc.Channel] = {}

    @property
    def json(self) -> bool:
        """Whether the result is for a program; streams are JSON lines, which are YAML as well."""
        return self.output is not Output.TABLE

    @property
    def out(self) -> Printer:
        """The printer of results."""
        return printer(self.output)

    def limit(self, default: float | None = None) -> float | None:
        """Return the time limit of a call, seconds: --timeout, else `default` (None = none)."""
        return self._timeout or default

    def kernel(self, stub: Callable[[Any], T]) -> T:
        """Return a generated stub that calls through the kernel.

        Raises Unavailable NOT_RUNNING, KERNEL_DOWN or UNREACHABLE when nothing answers there.
        """
        if self.given_address:
            return stub(self._open(self.given_address))
        path = self.socket("kernel")
        deadline = time.monotonic() + _CONNECT_S
        while not connects(path):
            if not connects(self.socket("init")):
                raise self.not_running()
            if time.monotonic() > deadline:
                raise Unavailable(
                    "KERNEL_DOWN",
                    "The kernel does not answer; init restarts it: see `llmos-ctl ps` and "
                    "`llmos-ctl logs kernel`.",
                )
            time.sleep(0.1)
        return stub(self._open(f"unix:{path}"))

    def init(self, stub: Callable[[Any], T]) -> T:
        """Return a generated stub that calls init: on its own socket, or at --address.

        Raises Unavailable NOT_RUNNING.
        """
        if self.given_address:
            return stub(self._open(self.given_address))
        path = self.socket("init")
        if not connects(path):
            raise self.not_running()
        return stub(self._open(f"unix:{path}"))

    def init_answers(self) -> bool:
        """Return whether an init runs in the state directory."""
        return connects(self.socket("init"))

    def socket(self, name: str) -> Path:
        """Return the Unix socket of a process; makes no directories where there are none."""
        if not self.state_dir.exists():
            return self.state_dir / "run" / f"{name}.sock"
        return run_dir(self.state_dir) / f"{name}.sock"

    def not_running(self) -> Unavailable:
        """Return the error that says so."""
        from llmos.lib.host import records  # imports psutil, which takes its time

        left = records(run_dir(self.state_dir)) if self.state_dir.exists() else ()
        if names := sorted(record.name for record in left):
            return Unavailable(
                "INIT_DOWN",
                f"init is gone, but {', '.join(names)} run: `llmos-ctl up` supervises them again, "
                "`llmos-ctl down` stops them.",
            )
        return Unavailable(
            "NOT_RUNNING",
            f"LLM OS is not running (state directory {self.state_dir}): start it with "
            "`llmos-ctl up`.",
        )

    def _open(self, address: str) -> grpc.Channel:
        import grpc

        from llmos.clients.ctl.fence import fenced

        if address not in self._channels:
            limits = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
            channel = grpc.insecure_channel(address, options=[(k, MAX_MESSAGE) for k in limits])
            self._channels[address] = channel
            patience = _CONNECT_S if self.given_address else _LISTENS_S
            patience = min(patience, self._timeout or patience)
            try:
                grpc.channel_ready_future(channel).result(timeout=patience)
            except grpc.FutureTimeoutError:
                cure = "check --address (or LLMOS_ADDRESS), which is unix:PATH or HOST:PORT"
                if not self.given_address:  # somebody listens there
                    cure = "the machine may be overloaded: see `llmos-ctl ps`, and try again"
                raise Unavailable(
                    "UNREACHABLE", f"Nothing answers at {address} within {patience:g} s; {cure}."
                ) from None
        return fenced(self._channels[address])

    def __enter__(self) -> Session:
        """Do nothing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            channel.close()


def connects(path: Path) -> bool:
    """Return whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # it is so busy that more wait to be let in than fit
        except OSError:
            return False
    return True


def again_and_again(session: Session, every_s: float, look: Callable[[], None]) -> None:
    """Call `look` until Ctrl-C; on a terminal each result takes the place of the one before."""
    import sys

    fresh = sys.stdout.isatty() and not session.json
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        while True:
            if fresh:
                print("\x1b[H\x1b[2J", end="")
            look()
            sys.stdout.flush()
            time.sleep(every_s)


# Whoever knows one word from one noun finds it at the others.
_TWINS = {"ls": "list", "list": "ls", "rm": "delete", "delete": "rm"}


def command(
    app: typer.Typer,
    name: str | None = None,
    *,
    examples: Sequence[str] = (),
    watch: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command of `app`.

    Its first parameter is the Session, made from the common options, which every command takes
    besides the function's own, both before and after its name. `examples` end its help text.
    watch: it takes `--watch SECONDS`, too, and then runs again and again until Ctrl-C.
    What has a twin in _TWINS can be called by that name as well.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
        common = [
            inspect.Parameter(key, keyword, default=None, annotation=hint)
            for key, hint in _COMMON.items()
        ]
        if watch:
            common.append(
                inspect.Parameter("watch", keyword, default=None, annotation=_WatchOption)
            )
        parameters = [context, *(p.replace(kind=keyword) for p in own), *common]

        @functools.wraps(function)
        def run(ctx: typer.Context, **values: Any) -> None:
            given = Options(**{key: values.pop(key) for key in _COMMON})
            options = given.over(ctx.obj or Options())
            ctx.find_root().obj = options
            every = values.pop("watch") if watch else None
            with Session(options) as session:
                if every is None:
                    function(session, **values)
                else:
                    again_and_again(session, every, functools.partial(function, session, **values))

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        # \b keeps the help formatter from filling lines
        lines = "".join(f"\n  {example}" for example in examples)
        epilog = f"\b\nExamples:{lines}" if lines else None
        app.command(name, epilog=epilog)(run)
        if twin := _TWINS.get(name or function.__name__):
            app.command(twin, epilog=epilog, hidden=True)(run)
        return function

    return register
