"""A conversation in the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from llmos.clients.ctl import complete, run
from llmos.clients.ctl.ctrl_c import CtrlC
from llmos.clients.ctl.progress import note
from llmos.clients.ctl.session import Session, command
from llmos.lib.errors import Cancelled, LLMOSError

HELP = """\
/model NAME     go on with another model; without a name, say which one it is
/system TEXT    begin every request with this message; without a text, with none
/new            forget the talk
/history        show the talk
/retry          ask the last question again
/set KEY VALUE  temperature, top_p, top_k, seed or max_tokens
/quit           end, as Ctrl-D does
A line that ends with \\ goes on in the next one; so does everything between two lines of \"\"\".
Ctrl-C stops an answer."""
_FENCE = '"""'
_HISTORY = 1000  # lines
_NUMBERS = {"temperature": float, "top_p": float, "top_k": int, "seed": int, "max_tokens": int}


@dataclass
class Talk:
    """What has been said, and how to go on."""

    model: str
    settings: run.Settings
    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)

    def messages(self) -> list[tuple[str, str]]:
        """Return all messages as (role, content)."""
        return ([("system", self.system)] if self.system else []) + self.turns


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, examples=["llmos-ctl chat smollm2 --system 'Answer in one line.'"])(chat)


def chat(
    session: Session,
    model: Annotated[
        str,
        typer.Argument(help="A model, `name` or `name@version`.", autocompletion=complete.models),
    ],
    max_tokens: run.MaxTokens = None,
    temperature: run.Temperature = None,
    top_p: run.TopP = None,
    top_k: run.TopK = None,
    seed: run.Seed = None,
    system: run.System = "",
    adapter: run.Adapter = "",
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D ends the chat, `/help` tells the rest."""
    talk = Talk(
        model, run.Settings(max_tokens, temperature, top_p, top_k, seed, adapter=adapter), system
    )
    with CtrlC() as ctrl_c, _history(session.state_dir / "chat_history"):
        while (said := _ask(ctrl_c)) is not None:
            if said.startswith("/"):
                if _obey(session, talk, said, ctrl_c) == "end":
                    return
                if said.split()[0] != "/retry" or not talk.turns:
                    continue
            elif said:
                talk.turns.append(("user", said))
            else:
                continue
            _answer(session, talk, ctrl_c)


def _answer(session: Session, talk: Talk, ctrl_c: CtrlC) -> None:
    """Ask for the answer to the last turn; a failed one leaves the talk as it was before it."""
    import grpc

    from llmos.lib.rpc import from_exception

    request = run.build(talk.model, talk.messages(), talk.settings)
    try:
        answer = run.stream(session, request, ctrl_c, show=True)
    except Cancelled:
        talk.turns.pop()  # an answer that nobody heard to the end is not part of the talk
        note("[stopped]")
        return
    except (LLMOSError, grpc.RpcError) as exc:
        talk.turns.pop()
        if not sys.stdin.isatty():
            raise
        note(f"[{from_exception(exc).message}]")
        return
    talk.turns.append(("assistant", answer.text))
    if run.finish(answer) == "length":
        note("[cut: --max-tokens or the context is reached]")
    if sys.stderr.isatty():
        note(f"[{answer.rate()}]")


def _other_model(session: Session, talk: Talk, name: str, ctrl_c: CtrlC) -> None:
    """Let another model answer from now on, if there is one of that name."""
    import grpc

    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
    from llmos.lib.rpc import from_exception

    request = execution_pb2.ListModelsRequest()
    try:
        with ctrl_c.raising():
            stub = session.kernel(execution_pb2_grpc.ExecutionStub)
            models = stub.ListModels(request, timeout=session.limit(10)).models
    except KeyboardInterrupt:
        note(f"[stopped; {talk.model} goes on]")
        return
    except (LLMOSError, grpc.RpcError) as exc:
        note(f"[{from_exception(exc).message}]")
        return
    known = {m.name for m in models} | {f"{m.name}@{m.version}" for m in models}
    if "@" in name and not name.rpartition("@")[2].isdigit():  # an alias, which storage knows
        known |= {name} if name.rpartition("@")[0] in known else set()
    if name in known:
        talk.model = name
        note(f"[{name} answers]")
    else:
        note(f"[there is no model {name}; {talk.model} goes on]")


def _obey(session: Session, talk: Talk, said: str, ctrl_c: CtrlC) -> str:
    """Do what a line with a slash says; return "end" when the chat is over."""
    verb, _, rest = said.partition(" ")
    rest = rest.strip()
    if verb in ("/quit", "/exit", "/bye"):
        return "end"
    if verb == "/new":
        talk.turns.clear()
    elif verb == "/model":
        if rest:
            _other_model(session, talk, rest, ctrl_c)
        else:
            note(f"[{talk.model} answers]")
    elif verb == "/system":
        talk.system = rest
        note("[the system message is set]" if rest else "[no system message]")
    elif verb == "/history":
        for role, text in talk.messages():
            note(f"{role}: {text}")
    elif verb == "/set":
        _set(talk, rest)
    elif verb == "/retry":
        while talk.turns and talk.turns[-1][0] == "assistant":
            talk.turns.pop()
    else:
        note(HELP if verb == "/help" else f"[there is no {verb}]\n{HELP}")
    return ""


def _set(talk: Talk, words: str) -> None:
    name, _, text = words.partition(" ")
    try:
        value = _NUMBERS[name](text)
    except (KeyError, ValueError):
        note(f"[/set takes one of {', '.join(_NUMBERS)} and a number]")
        return
    talk.settings = dataclasses.replace(talk.settings, **{name: value})
    note(f"[{name} is {value}]")


def _ask(ctrl_c: CtrlC) -> str | None:
    """Return what the person says, maybe of several lines; None at the end of input."""
    line = _line("> ", ctrl_c)
    if line is None:
        return None
    said: list[str] = []
    if line.strip() == _FENCE:
        while (line := _line("| ", ctrl_c)) is not None and line.strip() != _FENCE:
            said.append(line)
    else:
        while line is not None and line.endswith("\\"):
            said.append(line[:-1])
            line = _line("| ", ctrl_c)
        said.append(line or "")
    return "\n".join(said).strip()


def _line(prompt: str, ctrl_c: CtrlC) -> str | None:
    if not sys.stdin.isatty():
        with ctrl_c.raising():
            line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    while True:
        try:
            with ctrl_c.raising():
                return input(prompt)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            note("[Ctrl-D ends the chat]")


@contextlib.contextmanager
def _history(file: Path) -> Iterator[None]:
    """Keep what is typed in `file`, for the next chat; only on a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:  # a Python built without it has plain input
        yield
        return
    with contextlib.suppress(OSError):  # the first chat, or a file that is not ours to read
        readline.read_history_file(file)
    readline.set_history_length(_HISTORY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a chat does not fail for its history
            file.touch(mode=0o600)
            readline.write_history_file(file)
