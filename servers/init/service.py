"""The Init service: converts between messages and the supervisor, and delegates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from llmos.api.init.v1 import init_pb2, init_pb2_grpc
from llmos.lib.errors import NotFound
from llmos.servers.init import logs
from llmos.servers.init.supervisor import Supervisor, View

DEFAULT_LINES = 100


class InitService(init_pb2_grpc.InitServicer):
    """Serves `llmos.api.init.v1.Init` from a supervisor and a folder of logs."""

    def __init__(self, supervisor: Supervisor, log_folder: Path) -> None:
        """Delegate to `supervisor`; read logs from `log_folder`."""
        self._supervisor = supervisor
        self._logs = log_folder

    async def ListProcesses(
        self, request: init_pb2.ListProcessesRequest, context: Any
    ) -> init_pb2.ListProcessesResponse:
        """See init.proto."""
        return init_pb2.ListProcessesResponse(
            processes=[_process(view) for view in self._supervisor.views()]
        )

    async def RestartProcess(
        self, request: init_pb2.RestartProcessRequest, context: Any
    ) -> init_pb2.RestartProcessResponse:
        """See init.proto."""
        view = await self._supervisor.restart(request.name)
        return init_pb2.RestartProcessResponse(process=_process(view))

    async def ReadLog(
        self, request: init_pb2.ReadLogRequest, context: Any
    ) -> AsyncIterator[init_pb2.ReadLogResponse]:
        """See init.proto."""
        there = logs.available(self._logs)
        for view in self._supervisor.views():
            if view.log:
                there.setdefault(view.name, Path(view.log))
        if request.name not in there:
            raise NotFound(
                "NO_SUCH_PROCESS",
                f"There is no log of {request.name!r}; there are {', '.join(sorted(there))}.",
            )
        path, count = there[request.name], request.lines or DEFAULT_LINES
        if not request.follow:
            yield init_pb2.ReadLogResponse(lines=logs.tail(path, count)[0])
            return
        async for lines in logs.follow(path, count):
            yield init_pb2.ReadLogResponse(lines=lines)

    async def Shutdown(
        self, request: init_pb2.ShutdownRequest, context: Any
    ) -> AsyncIterator[init_pb2.ShutdownResponse]:
        """See init.proto."""
        async for step in self._supervisor.shutdown():
            yield init_pb2.ShutdownResponse(name=step.name, done=step.done)


def _process(view: View) -> init_pb2.Process:
    return init_pb2.Process(
        name=view.name,
        pid=view.pid,
        state=init_pb2.ProcessState.ValueType(view.state),
        restarts=view.restarts,
        rss_bytes=view.rss_bytes,
        uptime_s=view.uptime_s,
        managed=view.managed,
        last_exit=view.last_exit,
        log=view.log,
        address=view.address,
    )
