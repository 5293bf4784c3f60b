// Where a version came from and what was made from it, as a graph that reads from left to right.
import type { JSX } from "preact";
import { get } from "../lib/api";
import { usePoll } from "../lib/hooks";
import { t } from "../lib/i18n";
import type { LineageNode } from "../lib/types";
import { Trouble } from "../ui/parts";

type Placed = LineageNode & { x: number; y: number };
type Graph = { nodes: Placed[]; width: number; height: number };
type Reply = { nodes: LineageNode[] };

const BOX = { width: 150, height: 40, gapX: 46, gapY: 14 };

/** Places nodes in columns by their distance from the version asked for; ancestors to its left. */
export function placed(back: LineageNode[], on: LineageNode[]): Graph {
  const columns = new Map<number, LineageNode[]>();
  const put = (node: LineageNode, depth: number): void => {
    columns.set(depth, [...(columns.get(depth) ?? []), node]);
  };
  back.forEach((node) => put(node, -node.depth));
  on.filter((node) => node.depth > 0).forEach((node) => put(node, node.depth));
  const depths = [...columns.keys()].sort((a, b) => a - b);
  const tallest = Math.max(...[...columns.values()].map((column) => column.length));
  const height = tallest * (BOX.height + BOX.gapY) - BOX.gapY;
  const nodes = depths.flatMap((depth, x) => {
    const column = columns.get(depth) ?? [];
    const own = column.length * (BOX.height + BOX.gapY) - BOX.gapY;
    return column.map((node, y) => ({
      ...node,
      x: x * (BOX.width + BOX.gapX),
      y: (height - own) / 2 + y * (BOX.height + BOX.gapY),
    }));
  });
  return { nodes, width: depths.length * (BOX.width + BOX.gapX) - BOX.gapX, height };
}

export function LineageGraph(props: { ref_: string }): JSX.Element {
  const { ref_ } = props;
  const polled = usePoll(
    async (signal) => {
      const [back, on] = await Promise.all([
        get<Reply>(`/versions/${ref_}/lineage`, signal),
        get<Reply>(`/versions/${ref_}/lineage?descendants=true`, signal),
      ]);
      return placed(back.nodes, on.nodes);
    },
    10,
    ref_,
  );
  const graph = polled.value;
  if (!graph) return polled.error ? <Trouble error={polled.error} /> : <p class="dim">{t("waiting")}</p>;
  const at = new Map(graph.nodes.map((node) => [node.ref, node]));
  return (
    <div class="scroll">
      <svg class="lineage" width={graph.width + 4} height={graph.height + 4} viewBox={`-2 -2 ${graph.width + 4} ${graph.height + 4}`}>
        <title>{t("lineage")}</title>
        {graph.nodes.flatMap((node) =>
          (node.lineage?.parents ?? []).map((parent) => {
            const from = at.get(parent);
            if (!from) return null;
            const [x1, y1] = [from.x + BOX.width, from.y + BOX.height / 2];
            const [x2, y2] = [node.x, node.y + BOX.height / 2];
            const bend = BOX.gapX / 2;
            return (
              <path key={`${parent}>${node.ref}`} d={`M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`} />
            );
          }),
        )}
        {graph.nodes.map((node) => (
          <a key={node.ref} href={`#models/${node.ref}`} aria-label={node.ref}>
            <rect x={node.x} y={node.y} width={BOX.width} height={BOX.height} rx={6} class={node.ref === ref_ ? "own" : ""} />
            <text x={node.x + 9} y={node.y + 17}>
              {node.ref.length > 20 ? `${node.ref.slice(0, 19)}…` : node.ref}
            </text>
            <text x={node.x + 9} y={node.y + 32} class="dim">
              {node.missing ? t("deleted") : (node.lineage?.step || node.dtype || node.format).slice(0, 22)}
            </text>
          </a>
        ))}
      </svg>
    </div>
  );
}
