"""What a search tried, for people: a plot of the trials by two objectives, and a table."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from llmos.servers.optimizer.job import figures

Trial = Mapping[str, Any]  # as in trials.json


def section(trials: Sequence[Trial], objectives: Sequence[str]) -> str:
    """Return the part of a page: the plot, when there are two objectives, and the table."""
    seen = {tuple(trial["choices"].items()): trial for trial in trials}  # repeated = the same
    distinct = list(seen.values())
    head = "".join(f"<th>{html.escape(_title(name))}</th>" for name in objectives)
    rows = "".join(_row(trial, objectives) for trial in distinct)
    head = f"<tr><th>trial</th><th>choices</th>{head}<th></th></tr>"
    table = f"<h2>Trials</h2><table>{head}{rows}</table>"
    able = [t for t in distinct if set(objectives) <= set(t["figures"])]
    if len(objectives) < 2 or not able:
        return table
    picture = base64.b64encode(plot(able, objectives)).decode()
    return f'<h2>Front</h2><img alt="front" src="data:image/png;base64,{picture}">{table}'


def _title(name: str) -> str:
    unit = figures.UNITS.get(name, "")
    return f"{name} ({unit})" if unit else name


def _row(trial: Trial, objectives: Sequence[str]) -> str:
    said = "front" if trial["front"] else trial["why"] or "beaten"
    kind = ' class="better"' if trial["front"] else ' class="worse"' if trial["why"] else ""
    values = (trial["figures"].get(name) for name in objectives)
    cells = "".join(f"<td>{'-' if v is None else format(v, ',.5g')}</td>" for v in values)
    return (
        f"<tr><td>{trial['trial']} {html.escape(trial['ref'])}</td>"
        f"<td>{html.escape(_choices(trial))}</td>{cells}<td{kind}>{html.escape(said)}</td></tr>"
    )


def _choices(trial: Trial) -> str:
    return ", ".join(f"{name}: {taken}" for name, taken in trial["choices"].items())


def plot(trials: Sequence[Trial], objectives: Sequence[str]) -> bytes:
    """Draw the first two objectives of trials that have them, the front as a line; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    across, up = objectives[:2]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for label, colour, some in (
        ("closed by a gate", "C7", [t for t in trials if not t["holds"]]),
        ("beaten", "C0", [t for t in trials if t["holds"] and not t["front"]]),
    ):
        if some:
            points = [[t["figures"][name] for t in some] for name in (across, up)]
            axes.scatter(*points, color=colour, label=label)
    front = sorted((t["figures"][across], t["figures"][up]) for t in trials if t["front"])
    if front:
        x, y = zip(*front, strict=True)
        axes.plot(x, y, "o-", color="C2", label="front")
    for trial in trials:
        at = (trial["figures"][across], trial["figures"][up])
        axes.annotate(str(trial["trial"]), at, (4, 4), textcoords="offset points", fontsize=8)
    better = {True: "less is better", False: "more is better"}
    axes.set_xlabel(f"{_title(across)}, {better[figures.lower_is_better(across)]}")
    axes.set_ylabel(f"{_title(up)}, {better[figures.lower_is_better(up)]}")
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
