"""Storage and optimizer as real processes, without a kernel, in a state directory of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from memory_process import Processes

from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc
from llmos.lib import failpoint
from llmos.lib.config import run_dir
from llmos.lib.host import records

_SLOW_S = 400


class OptimizerSystem:
    """The two processes; `start` again after `kill`."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.run_dir = run_dir(processes.state_dir)
        self._failpoints = processes.state_dir / "failpoints"
        self._failpoints.mkdir()
        processes.environment[failpoint.VARIABLE] = str(self._failpoints)

    def start(self, name: str) -> None:
        flags = ["--kernel", "none"]
        if name == "optimizer":
            flags += ["--threads", "1", "--peers", f"storage={self._processes.address('storage')}"]
        self._processes.start(name, *flags)

    def kill(self, name: str) -> None:
        self._processes.kill(name)

    def address(self, name: str) -> str:
        return self._processes.address(name)

    def log(self, name: str) -> str:
        return self._processes.log(name)

    @contextmanager
    def jobs(self) -> Iterator[jobs_pb2_grpc.JobsStub]:
        with grpc.insecure_channel(self._processes.address("optimizer")) as channel:
            yield jobs_pb2_grpc.JobsStub(channel)

    @contextmanager
    def registry(self) -> Iterator[registry_pb2_grpc.RegistryStub]:
        with grpc.insecure_channel(self._processes.address("storage")) as channel:
            yield registry_pb2_grpc.RegistryStub(channel)

    def import_model(self, source: Path, name: str) -> str:
        with self.registry() as stub:
            request = registry_pb2.ImportModelRequest(source=str(source), name=name)
            *_, last = stub.ImportModel(request, timeout=60)
        return f"{last.version.name}@{last.version.version}"

    def versions(self, name: str) -> list[registry_pb2.ModelVersion]:
        """Return the versions of a model, oldest first."""
        with self.registry() as stub:
            request = registry_pb2.ListVersionsRequest(name=name)
            return list(reversed(stub.ListVersions(request, timeout=20).versions))

    def submit(self, spec: jobs_pb2.JobSpec, request_id: str = "") -> jobs_pb2.Job:
        with self.jobs() as stub:
            request = jobs_pb2.SubmitJobRequest(spec=spec, request_id=request_id)
            return stub.SubmitJob(request, timeout=20).job

    def watch(
        self, job: str, until: Callable[[jobs_pb2.Job], bool] = lambda job: False
    ) -> jobs_pb2.Job:
        """Return the job when it has ended, or earlier when `until` says so."""
        last = jobs_pb2.Job()
        with self.jobs() as stub:
            request = jobs_pb2.WatchJobRequest(id=job)
            for answer in stub.WatchJob(request, timeout=_SLOW_S, wait_for_ready=True):
                last = answer.job
                if until(last):
                    break
        return last

    def arm(self, place: str, count: int = 1, wait: bool = False) -> None:
        """Make the process that passes a failpoint so often die there, or wait."""
        file = self._failpoints / place
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_text(f"{count} wait" if wait else str(count))
        temporary.replace(file)

    def passed(self, place: str) -> bool:
        """Say whether a process has died there, or waits there."""
        return self._taken(place).exists()

    def until_passed(self, place: str) -> None:
        """Wait for it."""
        deadline = time.monotonic() + _SLOW_S
        while not self.passed(place):
            assert time.monotonic() < deadline, f"no process came to {place}"
            time.sleep(0.01)

    def release(self, place: str) -> None:
        """Let the process that waits there go on; it may be dead."""
        self._taken(place).unlink()

    def _taken(self, place: str) -> Path:
        return self._failpoints / f"{place}.taken"

    def job_pids(self) -> list[int]:
        return [r.pid for r in records(self.run_dir) if r.name.startswith("job/")]

    def end_jobs(self) -> None:
        """End job processes, which outlive their server."""
        deadline = time.monotonic() + 10
        while pids := self.job_pids():
            assert time.monotonic() < deadline, "a job process does not end"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            time.sleep(0.05)


@contextmanager
def optimizer_system(state: Path) -> Iterator[OptimizerSystem]:
    """Run both; every process that they started has ended afterwards."""
    with Processes(state) as processes:
        system = OptimizerSystem(processes)
        try:
            system.start("storage")
            system.start("optimizer")
            yield system
        finally:
            with contextlib.suppress(KeyError):
                processes.stop("optimizer")
            system.end_jobs()


def export_spec(
    model: str, min_cosine: float = 0, min_cosine_int8: float = 0, skip_int8: bool = False
) -> jobs_pb2.JobSpec:
    """Return the spec of an export."""
    return jobs_pb2.JobSpec(
        export_onnx=jobs_pb2.ExportOnnx(
            model=model,
            min_cosine=min_cosine,
            min_cosine_int8=min_cosine_int8,
            skip_int8=skip_int8,
        )
    )
