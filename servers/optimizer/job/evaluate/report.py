"""The report of an evaluation: JSON for programs, HTML and PNG for people."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from google.protobuf import json_format

from llmos.api.optimizer.v1 import evaluate_pb2
from llmos.servers.optimizer.job.figures import lower_is_better

JSON, HTML, PNG = "report.json", "report.html", "report.png"
_STYLE = (
    "body{font:15px system-ui;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}.better{color:#157f3b}.worse{color:#b3261e}"
)


def write(report: evaluate_pb2.Report, folder: Path, more: str = "") -> None:
    """Write all three into a folder, each whole or not at all. more: HTML at the page's end."""
    folder.mkdir(exist_ok=True)
    text = json_format.MessageToJson(report, preserving_proto_field_name=True)
    _put(folder / JSON, text.encode())
    plot(report, folder / PNG)
    picture = base64.b64encode((folder / PNG).read_bytes()).decode()
    _put(folder / HTML, (page(report, picture) + more).encode())


def _put(path: Path, data: bytes) -> None:
    temporary = path.with_name("tmp-" + path.name)
    temporary.write_bytes(data)
    temporary.replace(path)


def _names(report: evaluate_pb2.Report) -> list[tuple[str, str]]:
    found = {m.name: m.unit for version in report.versions for m in version.measures}
    return list(found.items())


def page(report: evaluate_pb2.Report, picture: str) -> str:
    """Return one HTML page with everything in it."""
    names = _names(report)
    first = {m.name: m.value for m in report.versions[0].measures}
    head = "".join(
        f"<th>{html.escape(name)}{f' ({unit})' if unit else ''}</th>" for name, unit in names
    )
    rows = []
    for version in report.versions:
        values = {m.name: m.value for m in version.measures}
        cells = "".join(_cell(name, values.get(name), first.get(name)) for name, _ in names)
        rows.append(f"<tr><td>{html.escape(version.ref)}</td>{cells}</tr>")
    where = html.escape(f"{report.rows} rows of {report.data or 'the reference manual'}")
    matrices = "".join(_matrix(version) for version in report.versions)
    return (
        f"<!doctype html><meta charset=utf-8><title>Comparison</title><style>{_STYLE}</style>"
        f"<h1>Comparison</h1><p>Measured on {where}. The first version is the original.</p>"
        f"<table><tr><th>version</th>{head}</tr>{''.join(rows)}</table>"
        f'<img alt="plot" src="data:image/png;base64,{picture}">{matrices}'
    )


def _cell(name: str, value: float | None, original: float | None) -> str:
    if value is None:
        return "<td>-</td>"
    kind = ""
    if original is not None and value != original:
        better = (value < original) == lower_is_better(name)
        kind = ' class="better"' if better else ' class="worse"'
    return f"<td{kind}>{value:,.5g}</td>"


def _matrix(version: evaluate_pb2.Evaluated) -> str:
    count = len(version.classes)
    if not count:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in version.classes)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{version.confusion[i * count + j]}</td>" for j in range(count))
        + "</tr>"
        for i, name in enumerate(version.classes)
    )
    title = f"<h2>Confusion of {html.escape(version.ref)}</h2><p>Rows are true classes.</p>"
    return f"{title}<table><tr><th></th>{head}</tr>{rows}</table>"


def plot(report: evaluate_pb2.Report, path: Path) -> None:
    """Draw a small bar chart for each measure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    names = _names(report)
    columns = min(4, max(1, len(names)))
    lines = -(-len(names) // columns) or 1
    figure = Figure(figsize=(3.4 * columns, 2.4 * lines), layout="constrained")
    labels = [version.ref for version in report.versions]
    for index, (name, unit) in enumerate(names):
        axes = figure.add_subplot(lines, columns, index + 1)
        values = [
            next((m.value for m in v.measures if m.name == name), 0.0) for v in report.versions
        ]
        colours = [f"C{i % 10}" for i in range(len(labels))]
        bars = axes.barh(labels, values, color=colours)
        axes.bar_label(bars, fmt="%.4g", fontsize=7, padding=2)
        axes.margins(x=0.25)
        axes.invert_yaxis()
        axes.set_title(f"{name} ({unit})" if unit else name, fontsize=9)
        axes.tick_params(labelsize=7)
    temporary = path.with_name("tmp-" + path.name)
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)
