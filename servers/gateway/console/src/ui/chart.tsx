// Lines over time or steps, drawn by uPlot.
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

/** points: each value is marked, for lines of few. */
export type Line = { label: string; colour: 1 | 2 | 3 | 4; points?: boolean };

const HEIGHT = 150;

function colours(): { text: string; grid: string; line: (n: number) => string } {
  const style = getComputedStyle(document.documentElement);
  const value = (name: string): string => style.getPropertyValue(name).trim();
  return { text: value("--dim"), grid: value("--line"), line: (n) => value(`--chart${n}`) };
}

const LEAST_S = 60; // a chart of time is as wide as this from its first look on

function clocks(_u: uPlot, splits: number[]): string[] {
  return splits.map((s) => new Date(s * 1000).toLocaleTimeString(document.documentElement.lang, { hour12: false }));
}

function build(place: HTMLElement, lines: Line[], time: boolean): uPlot {
  const c = colours();
  const window: uPlot.Range.Function = (_u, min, max) => [Math.min(min ?? 0, (max ?? 0) - LEAST_S), max ?? 0];
  const axis = { stroke: c.text, grid: { stroke: c.grid, width: 1 }, ticks: { show: false } };
  const series = lines.map((line) => ({
    label: line.label,
    stroke: c.line(line.colour),
    width: 2,
    spanGaps: true,
    points: { show: line.points ?? false, size: 5 },
  }));
  return new uPlot(
    {
      width: place.clientWidth || 300,
      height: HEIGHT,
      scales: { x: time ? { time, range: window } : { time }, y: { range: (_u, _min, max) => [0, max > 0 ? max * 1.1 : 1] } },
      axes: [
        time ? { ...axis, space: 90, values: clocks } : { ...axis, space: 70 },
        { ...axis, size: 46 },
      ],
      series: [{}, ...series],
      legend: { live: false },
      cursor: { drag: { x: false, y: false } },
    },
    [[], ...lines.map(() => [])] as unknown as uPlot.AlignedData,
    place,
  );
}

export function Chart(props: {
  lines: Line[];
  /** x first, then one column for each line. */
  data: (number | null)[][];
  title: string;
  time?: boolean;
  /** What to say while no line has a value. */
  none?: string;
}): JSX.Element {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const labels = props.lines.map((line) => line.label).join();
  const theme = document.documentElement.dataset.theme;
  useEffect(() => {
    const element = place.current!;
    plot.current = build(element, props.lines, props.time ?? true);
    const watch = new ResizeObserver(() =>
      plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }),
    );
    watch.observe(element);
    return () => {
      watch.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [labels, props.time, theme]);
  useEffect(() => {
    if (props.data.length === props.lines.length + 1) {
      plot.current?.setData(props.data as uPlot.AlignedData);
    }
  });
  const empty = !props.data.slice(1).some((column) => column.some((value) => value !== null));
  return (
    <div class="chart" role="img" aria-label={props.title}>
      {empty && props.none && <p class="none">{props.none}</p>}
      <div ref={place} />
    </div>
  );
}
