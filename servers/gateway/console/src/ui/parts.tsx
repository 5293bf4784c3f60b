// Small parts that pages are made of.
import type { ComponentChildren, JSX } from "preact";
import { stateWord, t } from "../lib/i18n";
import { useLive, type Health } from "../lib/system";

export function Panel(props: {
  title: string;
  side?: ComponentChildren;
  children: ComponentChildren;
  id?: string;
}): JSX.Element {
  return (
    <section class="panel" id={props.id} aria-label={props.title}>
      <header>
        <h2>{props.title}</h2>
        {props.side}
      </header>
      {props.children}
    </section>
  );
}

export type Column<T> = {
  title: string;
  cell: (row: T) => ComponentChildren;
  /** Numbers are set to the right. */
  number?: boolean;
};

/** A table that becomes a list of cards where there is no room for columns. */
export function Table<T>(props: {
  rows: T[];
  columns: Column<T>[];
  id: (row: T) => string | number;
  empty?: string;
  chosen?: string | number;
  label: string;
}): JSX.Element {
  if (!props.rows.length) return <p class="dim">{props.empty ?? t("nothing")}</p>;
  return (
    <div class="table">
      <table aria-label={props.label}>
        <thead>
          <tr>
            {props.columns.map((column) => (
              <th key={column.title} class={column.number ? "number" : ""} scope="col">
                {column.title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {props.rows.map((row) => (
            <tr key={props.id(row)} class={props.id(row) === props.chosen ? "chosen" : ""}>
              {props.columns.map((column) => (
                <td key={column.title} class={column.number ? "number" : ""} data-title={column.title}>
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const COLOURS: Record<string, Health> = {
  ready: "good", running: "good", succeeded: "good", attached: "good",
  loading: "warn", unloading: "warn", queued: "warn", starting: "warn", waiting: "warn",
  stopping: "warn", draining: "warn", paused: "warn",
  failed: "bad", stalled: "bad", backoff: "bad",
};

/** A state as a coloured word; the colour is never all that tells. */
export function Badge(props: { state: string; health?: Health }): JSX.Element {
  const health = props.health ?? COLOURS[props.state] ?? "idle";
  return <span class={`badge ${health}`}>{stateWord(props.state)}</span>;
}

export function Figure(props: { value: string | number; name: string; bad?: boolean }): JSX.Element {
  return (
    <div class={`figure ${props.bad ? "bad" : ""}`}>
      <b>{props.value}</b>
      <span>{props.name}</span>
    </div>
  );
}

export function Meter(props: { share: number; label: string }): JSX.Element {
  const share = Math.max(0, Math.min(1, props.share));
  return (
    <span
      class="meter"
      role="progressbar"
      aria-label={props.label}
      aria-valuenow={Math.round(share * 100)}
      aria-valuemin={0}
      aria-valuemax={100}
    >
      <span style={{ width: `${share * 100}%` }} />
    </span>
  );
}

/** What is wrong; `whole`: with everything, which the parts of the page then need not say again. */
export function Trouble(props: { error: string; whole?: boolean }): JSX.Element | null {
  const live = useLive();
  return props.error && (props.whole || props.error !== live.error) ? (
    <p class="trouble" role="alert">
      {t("notOfNow", { cause: props.error })}
    </p>
  ) : null;
}

export function Tabs<K extends string>(props: {
  tabs: [K, string][];
  chosen: K;
  choose: (tab: K) => void;
}): JSX.Element {
  return (
    <div class="tabs" role="tablist">
      {props.tabs.map(([key, title]) => (
        <button
          key={key}
          role="tab"
          aria-selected={key === props.chosen}
          onClick={() => props.choose(key)}
        >
          {title}
        </button>
      ))}
    </div>
  );
}
