// Hooks that keep a page up to date.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { feed } from "./api";

export type Polled<T> = { value: T | null; error: string; again: () => void };

/** Calls `load` now, every `seconds` while the page is visible, and at once after `again`. */
export function usePoll<T>(
  load: (signal: AbortSignal) => Promise<T>,
  seconds: number,
  key = "",
): Polled<T> {
  const [state, setState] = useState<{ key: string; value: T | null; error: string }>({
    key,
    value: null,
    error: "",
  });
  const [round, setRound] = useState(0);
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    const look = async (): Promise<void> => {
      if (!document.hidden) {
        try {
          const value = await latest.current(stop.signal);
          setState({ key, value, error: "" });
        } catch (cause) {
          if (stop.signal.aborted) return;
          const error = cause instanceof Error ? cause.message : String(cause);
          setState((old) => ({ key, value: old.key === key ? old.value : null, error }));
        }
      }
      if (!stop.signal.aborted) timer = window.setTimeout(look, seconds * 1000);
    };
    void look();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [seconds, key, round]);
  const again = useCallback(() => setRound((n) => n + 1), []);
  return { value: state.key === key ? state.value : null, error: state.error, again };
}

const RETRY_MS = 2000;

/** Gives every value of a feed to `take`; one that breaks is opened again. Returns what is wrong. */
export function useFeed<T>(path: string, take: (value: T) => void, follow = true): string {
  const [error, setError] = useState("");
  const latest = useRef(take);
  latest.current = take;
  useEffect(() => {
    if (!path) return;
    const stop = new AbortController();
    const run = async (): Promise<void> => {
      while (!stop.signal.aborted) {
        try {
          for await (const value of feed<T>(path, stop.signal)) {
            setError("");
            latest.current(value);
          }
          if (!follow) return;
        } catch (cause) {
          if (stop.signal.aborted) return;
          setError(cause instanceof Error ? cause.message : String(cause));
        }
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    };
    void run();
    return () => stop.abort();
  }, [path, follow]);
  return error;
}

/** A value kept in the browser's storage under `name`. */
export function useKept<T>(name: string, first: T): [T, (value: T) => void] {
  const key = `llmos.${name}`;
  const [value, setValue] = useState<T>(() => {
    const kept = localStorage.getItem(key);
    return kept === null ? first : (JSON.parse(kept) as T);
  });
  const set = useCallback(
    (next: T) => {
      localStorage.setItem(key, JSON.stringify(next));
      setValue(next);
    },
    [key],
  );
  return [value, set];
}

/** The last `count` of the values that came, with the time of each in Unix seconds. */
export function useHistory(values: (number | null)[] | null, count: number, tick: number): number[][] {
  const kept = useRef<number[][]>([]);
  const last = useRef(-1);
  if (values && tick !== last.current) {
    last.current = tick;
    const row = [Date.now() / 1000, ...values];
    if (kept.current.length !== row.length) kept.current = row.map(() => []);
    kept.current = kept.current.map((column, i) => [...column, row[i] as number].slice(-count));
  }
  return kept.current;
}
