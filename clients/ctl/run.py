"""One prompt, one answer."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl import complete
from llmos.clients.ctl.ctrl_c import CtrlC
from llmos.clients.ctl.output import as_value, short_name
from llmos.clients.ctl.progress import note, status
from llmos.clients.ctl.session import INTERACTIVE, UINT32, UINT64, Session, command
from llmos.lib.errors import Cancelled

if TYPE_CHECKING:
    from llmos.api.execution.v1 import execution_pb2

_EXAMPLES = [
    'llmos-ctl run smollm2 "Why is the sky blue?"',
    'llmos-ctl run smollm2 "Once upon a time" --raw --seed 7 --max-tokens 50',
    "cat question.txt | llmos-ctl run smollm2 -",
    'llmos-ctl run smollm2 "In the beginning" --raw --adapter smollm2-lora',
]

MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, max=UINT32, help="At most so many new tokens.", show_default="256"),
]
Temperature = Annotated[
    float | None, typer.Option(help="0 = always the likeliest token; to 2.", show_default="0.7")
]
TopP = Annotated[float | None, typer.Option(help="Nucleus, over 0 to 1.", show_default="1")]
TopK = Annotated[int | None, typer.Option(min=0, max=UINT32, help="The k likeliest; 0 = all.")]
Seed = Annotated[
    int | None, typer.Option(min=0, max=UINT64, help="The same seed gives the same text.")
]
Stop = Annotated[list[str] | None, typer.Option(help="End at this text; may be given again.")]
System = Annotated[str, typer.Option(help="A system message in front of the chat.")]
Adapter = Annotated[str, typer.Option(help="A LoRA adapter in storage to answer with.")]


@dataclass(frozen=True)
class Settings:
    """How an answer is generated; None = the model server's default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    adapter: str = ""


@dataclass
class Answer:
    """What came back."""

    text: str
    last: execution_pb2.GenerateResponse

    def rate(self) -> str:
        """Return tokens and speed for people."""
        usage = self.last.usage
        count = usage.completion_tokens
        steps = max(0, count - 1)
        speed = f"{steps / usage.decode_s:.1f} tokens/s, " if steps and usage.decode_s else ""
        return (
            f"{usage.prompt_tokens} + {count} tokens, {speed}"
            f"first token after {usage.first_token_s:.2f} s, {self.last.model}"
        )


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, examples=_EXAMPLES)(run)


def run(
    session: Session,
    model: Annotated[
        str,
        typer.Argument(help="A model, `name` or `name@version`.", autocompletion=complete.models),
    ],
    prompt: Annotated[str, typer.Argument(help="What to ask; `-` reads it from stdin.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    system: System = "",
    adapter: Adapter = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")
    ] = False,
) -> None:
    """Ask a model and print the answer as it comes; the model is loaded when it is not."""
    text = sys.stdin.read() if prompt == "-" else prompt
    settings = Settings(max_tokens, temperature, top_p, top_k, seed, tuple(stop or ()), adapter)
    messages = ([("system", system)] if system else []) + [("user", text)]
    request = build(model, text if raw else messages, settings)
    with CtrlC() as ctrl_c:
        answer = stream(session, request, ctrl_c, show=not session.json)
    if session.json:
        value = {**as_value(answer.last), "text": answer.text}
        del value["token_ids"]
        session.out.say("", value)
    else:
        note(f"[{answer.rate()}]")


def build(
    model: str, asked: str | Iterable[tuple[str, str]], settings: Settings
) -> execution_pb2.GenerateRequest:
    """Return the request for a raw prompt, or for a chat of (role, content)."""
    from llmos.api.execution.v1 import execution_pb2

    sampling = execution_pb2.Sampling()
    for name in ("temperature", "top_p", "top_k", "seed"):
        value = getattr(settings, name)
        if value is not None:
            setattr(sampling, name, value)
    request = execution_pb2.GenerateRequest(
        model=model,
        max_tokens=settings.max_tokens or 0,
        sampling=sampling,
        stop=list(settings.stop),
        adapter=settings.adapter,
    )
    if isinstance(asked, str):
        request.prompt = asked
    else:
        request.chat.SetInParent()
        for role, content in asked:
            request.chat.messages.add(role=role, content=content)
    return request


def stream(
    session: Session, request: execution_pb2.GenerateRequest, ctrl_c: CtrlC, *, show: bool
) -> Answer:
    """Run a generation, printing the text as it comes when `show`; Ctrl-C cancels it.

    Raises Cancelled CANCELLED on Ctrl-C, and whatever the call ends with.
    """
    import grpc

    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    try:
        with ctrl_c.raising():  # it may take a while, until the kernel answers
            stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    except KeyboardInterrupt:
        raise _interrupted() from None
    call: Any = stub.Generate(request, timeout=session.limit(), metadata=INTERACTIVE)
    pieces: list[str] = []
    last = execution_pb2.GenerateResponse()
    try:
        with ctrl_c.cancelling(call.cancel):
            with status(f"waiting for {request.model}"):
                first = next(call, None)
            while first is not None:
                last = first
                pieces.append(last.text)
                if show:
                    print(last.text, end="", flush=True)
                first = next(call, None)
    except grpc.RpcError:
        if ctrl_c.taken():
            raise _interrupted() from None
        raise
    finally:
        if show and pieces:
            print(flush=True)
    return Answer("".join(pieces), last)


def _interrupted() -> Cancelled:
    return Cancelled("CANCELLED", "Interrupted.")


def finish(answer: Answer) -> str:
    """Return why it ended: `stop` or `length`."""
    kind = answer.last.DESCRIPTOR.fields_by_name["finish_reason"].enum_type
    return short_name(kind, answer.last.finish_reason)
