// The live picture of the system: polled once for all pages, with rates between two looks.
import { createContext } from "preact";
import { useContext, useRef } from "preact/hooks";
import { get } from "./api";
import { usePoll } from "./hooks";
import type { News, Process, System } from "./types";

export const PERIOD_S = 1.5;

export type Live = {
  system: System | null;
  /** Why the picture is not of now. */
  error: string;
  /** Grows with every look. */
  tick: number;
  callsPerS: number;
  failedPerS: number;
  /** By port number. */
  servedPerS: Map<number, number>;
  /** By name. */
  endedPerS: Map<string, number>;
  news: News[];
  again: () => void;
};

const EMPTY: Omit<Live, "error" | "news" | "again"> = {
  system: null,
  tick: 0,
  callsPerS: 0,
  failedPerS: 0,
  servedPerS: new Map(),
  endedPerS: new Map(),
};

type Sample = { at: number; system: System };

function sum(counts: Record<string, number>, ok: boolean): number {
  return Object.entries(counts).reduce((n, [code, count]) => n + ((code === "0") === ok ? count : 0), 0);
}

function growth<K>(old: Map<K, number>, now: Map<K, number>, seconds: number): Map<K, number> {
  const grown = new Map<K, number>();
  for (const [key, count] of now) {
    const before = old.get(key);
    if (before !== undefined) grown.set(key, Math.max(0, count - before) / seconds);
  }
  return grown;
}

const served = (s: System) => new Map((s.ports ?? []).map((p) => [p.port, p.served] as const));
const ended = (s: System) => new Map((s.tenants ?? []).map((t) => [t.limits.tenant, t.ended] as const));

export function useLiveSource(news: News[]): Live {
  const before = useRef<Sample | null>(null);
  const live = useRef(EMPTY);
  const polled = usePoll<System>(async (signal) => {
    const system = await get<System>("/system", signal);
    const now = { at: performance.now() / 1000, system };
    live.current = rates(before.current, now, live.current.tick + 1);
    before.current = now;
    return system;
  }, PERIOD_S);
  const partial = Object.values(polled.value?.errors ?? {})[0]?.message ?? "";
  return { ...live.current, error: polled.error || partial, news, again: polled.again };
}

function rates(before: Sample | null, now: Sample, tick: number): typeof EMPTY {
  const old = before?.system.stats;
  const stats = now.system.stats;
  if (!before || !old || !stats || old.kernel !== stats.kernel || now.at <= before.at) {
    return { ...EMPTY, system: now.system, tick };
  }
  const seconds = now.at - before.at;
  const good = (sum(stats.ended, true) - sum(old.ended, true)) / seconds;
  const bad = (sum(stats.ended, false) - sum(old.ended, false)) / seconds;
  return {
    system: now.system,
    tick,
    callsPerS: good + bad,
    failedPerS: bad,
    servedPerS: growth(served(before.system), served(now.system), seconds),
    endedPerS: growth(ended(before.system), ended(now.system), seconds),
  };
}

export const LiveContext = createContext<Live>({ ...EMPTY, error: "", news: [], again: () => {} });
export const useLive = (): Live => useContext(LiveContext);

export type Health = "good" | "warn" | "bad" | "idle";

const STATES: Record<string, Health> = {
  running: "good",
  waiting: "warn",
  starting: "warn",
  stopping: "warn",
  backoff: "bad",
  stopped: "idle",
};

export function healthOf(process: Process, stalled: boolean, draining: boolean): Health {
  if (stalled) return "bad";
  return draining ? "warn" : (STATES[process.state] ?? "idle");
}
