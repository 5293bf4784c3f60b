"""The screen of `llmos-ctl top`, drawn with rich."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmos.clients.ctl import frame
from llmos.clients.ctl.dashboard_look import Look
from llmos.clients.ctl.output import duration, size

if TYPE_CHECKING:
    from llmos.clients.ctl.dashboard import Screen

Row = dict[str, Any]
_ALL = 1_000  # lines, where there is no screen to fit into
_FIXED = 17  # lines that are not rows
_BAR = 30


def view(look: Look, screen: Screen | None, height: int) -> RenderableType:
    """Return a look in about `height` lines (0 = all of it), with what `screen` has chosen."""
    room = max(12, height - _FIXED - len(look.devices)) if height else _ALL
    lines = shares(room, {section: len(look.rows(section)) for section in _COLUMNS})
    parts: list[RenderableType] = [_head(look)]
    if screen is not None:
        parts.append(_prompt(screen))  # at the top, where no small screen cuts it off
    parts += [*_devices(look), _queues(look)]
    for section, columns in _COLUMNS.items():
        rows = look.rows(section)
        shown = lines[section]
        chosen = None
        if screen is not None and screen.section == section:
            chosen = min(screen.row[section], max(0, len(rows) - 1))
        first = max(0, (chosen or 0) - shown + 1)
        parts.append(_title(section, min(shown, len(rows)), len(rows), chosen is not None, look))
        at = None if chosen is None else chosen - first
        parts.append(_table(columns, rows[first : first + shown], at))
    return Group(*parts)


def shares(room: int, rows: dict[str, int]) -> dict[str, int]:
    """Return how many rows each table shows: what one does not need is for the others."""
    shares = {"servers": 0.4, "models": 0.25, "calls": 0.2, "jobs": 0.15}
    lines = {name: min(rows[name], max(2, int(room * share))) for name, share in shares.items()}
    for name in shares:
        left = max(0, room - sum(lines.values()))
        lines[name] += min(left, rows[name] - lines[name])
    return lines


def _head(look: Look) -> Text:
    stats = look.sample.stats
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append("kernel ", "bold").append(f"pid {stats.pid}  up {duration(stats.uptime_s)}  ")
    head.append(f"{look.rate.calls:,.1f} calls/s", "bold green")
    head.append(f"  failed {look.rate.failed:,.1f}/s", "bold red" if look.rate.failed else "")
    return head.append(f"  running {stats.running}  queued {stats.queued}  faults {stats.faults}")


def _devices(look: Look) -> list[Text]:
    lines = []
    for device in look.devices:
        budget = max(1, device["budget_bytes"])
        full = round(_BAR * min(1.0, device["granted_bytes"] / budget))
        line = Text(f"{device['name']:<7}", no_wrap=True)
        line.append("█" * full, "blue").append("░" * (_BAR - full), "dim")
        line.append(f" {size(device['granted_bytes'])} of {size(budget)} granted, ")
        lines.append(line.append(f"{size(device['free_bytes'])} free on the device"))
    return lines


def _queues(look: Look) -> Text:
    waiting = [
        f"{q.key or service.rsplit('.', 1)[-1]} {q.queued} (oldest {duration(q.oldest_s)})"
        for service, q in frame.queues(look.sample)
    ]
    line = Text("queues ", "bold", no_wrap=True, overflow="ellipsis")
    return line.append(", ".join(waiting) or "nothing waits", "yellow" if waiting else "dim")


def _title(section: str, shown: int, there: int, chosen: bool, look: Look) -> Text:
    title = Text(f"\n{section.upper()}", "bold reverse" if chosen else "bold")
    if shown < there:
        title.append(f"  {shown} of {there}", "dim")
    key = "processes" if section == "servers" else section
    return title.append(f"  {look.trouble[key]}", "red") if key in look.trouble else title


def _prompt(screen: Screen) -> Text:
    if screen.asking is not None:
        return Text(screen.asking[0], "bold yellow")
    hint = "Tab table · ↑↓ row · r restart · d drain · l load · u unload · c cancel · q quit"
    return Text(screen.said or hint, "" if screen.said else "dim")


Column = tuple[str, bool, Callable[[Row], str]]  # title, right-aligned, cell
_COLUMNS: dict[str, Sequence[Column]] = {
    "servers": (
        ("NAME", False, lambda r: r["name"]),
        ("PID", True, lambda r: str(r["pid"] or "-")),
        ("STATE", False, lambda r: f"{r['state']} {r['flags'].upper()}".strip()),
        ("RESTARTS", True, lambda r: str(r["restarts"]) if r["managed"] else "-"),
        ("RSS", True, lambda r: size(r["rss_bytes"]) if r["rss_bytes"] else "-"),
        ("UP", True, lambda r: duration(r["uptime_s"])),
        ("RUN", True, lambda r: str(r["running"])),
        ("SERVED/S", True, lambda r: f"{r['served_per_s']:,.1f}"),
    ),
    "models": (
        ("MODEL", False, lambda r: f"{r['name']}@{r['version']}"),
        ("STATE", False, lambda r: r["state"]),
        ("TASK", False, lambda r: r["task"]),
        ("ENGINE", False, lambda r: r["engine"] or "-"),
        ("DEVICE", False, lambda r: r["device"] or "-"),
        ("GRANTED", True, lambda r: size(r["granted_bytes"]) if r["pid"] else "-"),
        ("USED", True, lambda r: size(r["used_bytes"]) if r["pid"] else "-"),
    ),
    "calls": (
        ("ID", False, lambda r: r["id"]),
        ("METHOD", False, lambda r: r["method"].rsplit(".", 1)[-1]),
        ("KEY", False, lambda r: r["key"] or "-"),
        ("CLASS", False, lambda r: r["call_class"]),
        ("TENANT", False, lambda r: r["tenant"]),
        ("CALLER", False, lambda r: r["caller"]),
        ("AGE", True, lambda r: duration(r["age_s"])),
        ("PORT", True, lambda r: str(r["server"] or "queued")),
    ),
    "jobs": (
        ("ID", False, lambda r: r["id"]),
        ("STATE", False, lambda r: r["state"]),
        ("DONE", True, lambda r: f"{r['progress']:.0%}"),
        ("STAGE", False, lambda r: r["error"] or ", ".join(r["results"]) or r["stage"]),
    ),
}


def _table(columns: Sequence[Column], rows: list[Row], chosen: int | None) -> RenderableType:
    if not rows:
        return Text("none", "dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1), expand=True)
    for title, right, _ in columns:
        justify: Any = "right" if right else "left"
        table.add_column(title, justify=justify, no_wrap=True, overflow="ellipsis")
    for number, row in enumerate(rows):
        troubled = row.get("state") in ("failed", "backoff") or "stalled" in row.get("flags", "")
        style = "reverse" if number == chosen else "bold red" if troubled else ""
        table.add_row(*(Text(cell(row)) for _, _, cell in columns), style=style)
    return table
