"""Models that bring a class of their own: one that does whatever it is told."""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

UNRULY = '''
import os
import sys
import time

import numpy as np


class Unruly:
    """Adds one; by the first number of its input it does worse."""

    def __init__(self, given):
        self.given = given
        self.name = (given.folder / "name.txt").read_text().strip()

    def predict(self, inputs):
        x = inputs["x"]
        what = int(x.max())
        if what == 101:
            os.abort()
        if what == 102:
            held = []
            while True:
                held.append(bytearray(16 << 20))
        if what == 103:
            time.sleep(3600)
        if what == 104:
            for number in range(3, 64):
                try:
                    os.write(number, b"garbage" * 1000)
                except OSError:
                    pass
        if what == 105:
            raise ValueError("105 is refused")
        if what == 106:
            return {"y": x.astype(np.float64), "who": np.array([self.name], object)}
        if what == 107:
            raise KeyError("no such thing")
        if what == 108:
            os._exit(7)
        if what == 109:
            while True:
                pass
        print("served", flush=True)
        who = np.array([self.name + " " + sys.prefix], object)
        return {"y": x + 1, "who": who[:1].repeat(len(x))}
'''

DECLARED = """
version = 1
class = "unruly:Unruly"
memory_mb = 256
stall_s = {stall_s}
call_s = {call_s}
environment = "{environment}"
[[inputs]]
name = "x"
dtype = "float32"
shape = [-1, 4]
[[outputs]]
name = "y"
dtype = "float32"
shape = [-1, 4]
[[outputs]]
name = "who"
dtype = "object"
shape = [-1]
"""


def unruly(
    folder: Path,
    *,
    environment: str = "",
    stall_s: float = 1.5,
    call_s: float = 60,
    serving: str = "",
) -> Path:
    """Write a folder with the model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unruly.py").write_text(UNRULY)
    (folder / "name.txt").write_text(folder.name)
    (folder / "python.toml").write_text(
        DECLARED.format(environment=environment, stall_s=stall_s, call_s=call_s)
    )
    if serving:
        (folder / "serving.toml").write_text(serving)
    return folder


def environment(folder: Path) -> Path:
    """Make an environment that has NumPy and nothing of LLM OS."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = folder / "lib" / version / "site-packages"
    for found in Path(sysconfig.get_path("purelib")).glob("numpy*"):
        (site / found.name).symlink_to(found)
    return folder
