"""Small TorchScript, torch.export and torch.save files for tests, written by torch itself."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch


class Net(torch.nn.Module):
    """y = relu(x @ w.T + b), 4 wide in and 3 wide out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


def tiny_script(path: Path) -> Path:
    """Write a TorchScript archive of `Net`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and people have its files
        torch.jit.script(Net().eval()).save(str(path))  # type: ignore[no-untyped-call]
    return path


def tiny_export(path: Path) -> Path:
    """Write a torch.export archive of `Net`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where no file name ends in .pt2, and of torch's own
        with path.open("wb") as file:
            torch.export.save(torch.export.export(Net().eval(), (torch.zeros(1, 4),)), file)
    return path


def tiny_checkpoint(path: Path) -> Path:
    """Write the state dict of `Net` by torch.save."""
    torch.save(Net().state_dict(), path)
    return path


def rewritten(path: Path, changes: Mapping[str, bytes | None], *, deflate: bool = False) -> Path:
    """Change entries of an archive, named without its root folder; None = leave it out."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        entries = {n.removeprefix(f"{root}/"): archive.read(n) for n in archive.namelist()}
    entries |= {name: data for name, data in changes.items() if data is not None}
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in entries.items():
            if changes.get(name, b"") is not None:
                archive.writestr(name if name.startswith(("/", "..")) else f"{root}/{name}", data)
    return path
