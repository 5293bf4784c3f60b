// Reading histograms of Prometheus' text format: what happened between two looks.

/** Counts up to each upper bound, all label sets of the histogram summed. */
export type Histogram = Map<number, number>;

export function histogram(text: string, name: string): Histogram {
  const found: Histogram = new Map();
  const wanted = `${name}_bucket{`;
  for (const line of text.split("\n")) {
    if (!line.startsWith(wanted)) continue;
    const bound = /le="([^"]+)"/.exec(line)?.[1];
    if (bound === undefined) continue;
    const le = bound === "+Inf" ? Infinity : Number(bound);
    const count = Number(line.slice(line.lastIndexOf(" ") + 1));
    found.set(le, (found.get(le) ?? 0) + count);
  }
  return found;
}

/** The quantile of what came between two looks, as Prometheus computes it; null when nothing came. */
export function quantile(before: Histogram | null, now: Histogram, q: number): number | null {
  const bounds = [...now.keys()].sort((a, b) => a - b);
  const counts = bounds.map((le) => (now.get(le) ?? 0) - (before?.get(le) ?? 0));
  const total = counts.at(-1) ?? 0;
  if (total <= 0) return null;
  const rank = q * total;
  const at = counts.findIndex((count) => count >= rank);
  const upper = bounds[at] ?? 0;
  const lower = at > 0 ? (bounds[at - 1] ?? 0) : 0;
  if (!Number.isFinite(upper)) return lower;
  const below = at > 0 ? (counts[at - 1] ?? 0) : 0;
  const inside = (counts[at] ?? 0) - below;
  return lower + ((upper - lower) * (rank - below)) / (inside || 1);
}
