from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from llmos.servers.memory import devices


def test_the_cpu_comes_first_and_has_its_share() -> None:
    cpu = devices.probe(0.5, 0.9)[0]
    assert cpu.name == "cpu"
    assert 0 < cpu.total <= psutil.virtual_memory().total
    assert cpu.budget == int(cpu.total * 0.5)
    assert 0 < cpu.free() <= cpu.total


def test_cgroup_limits_bound_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "slice/unit"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("max\n")
    for folder, limit, used, cache in ((own.parent, 1000, 700, 200), (tmp_path, 5000, 4900, 0)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 3\ninactive_file {cache}\n")
    folders = (own, own.parent, tmp_path, tmp_path / "not there")
    names = ("memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(devices, "_cgroups", lambda: (devices._Group(f, *names) for f in folders))
    monkeypatch.setattr(devices, "_limited", devices._limited.__wrapped__)
    assert list(devices._limits()) == [(1000, 500), (5000, 4900)]
    assert devices.total_ram() == 1000
    assert devices.available_ram() == 100


def test_cgroups_are_searched_up_to_the_root() -> None:
    folders = [group.folder for group in devices._cgroups()]
    assert all(str(f).startswith("/sys/fs/cgroup") for f in folders)
    assert not folders or len(folders[-1].parts) <= 5


@pytest.mark.parametrize(
    ("value", "seen"),
    [(None, "abc"), ("2,0", "ca"), ("", ""), ("GPU-1,7,1", "u"), ("-1,0", ""), (" 1 ", "b")],
)
def test_cuda_visible_devices(
    value: str | None, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert "".join(devices._visible(list("abc"), lambda uuid: "u")) == seen


@pytest.mark.gpu
@pytest.mark.skipif(not os.path.exists("/dev/nvidia0"), reason="no NVIDIA GPU")
def test_gpus_are_found() -> None:
    gpu = devices.probe(0.7, 0.9)[1]
    assert gpu.name == "cuda:0" and gpu.total > 1 << 30
    assert 0 < gpu.free() <= gpu.total and gpu.budget < gpu.total
