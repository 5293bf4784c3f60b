// Logs of every process as they are written, and the audit log of storage.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { useFeed } from "../lib/hooks";
import { t } from "../lib/i18n";
import { useLive } from "../lib/system";
import { Panel, Tabs, Trouble } from "../ui/parts";
import { AuditTab } from "./audit";

const KEPT = 2000;
const FIRST = 300;
const LEVELS = ["debug", "info", "warning", "error", "critical"];
type Line = { time: string; level: string; text: string; more: string };

/** Reads a line as the processes write them, one JSON object each; others are shown as they are. */
export function parsed(text: string): Line {
  try {
    const { time, level, message, process: _process, logger: _logger, ...rest } = JSON.parse(text) as Record<string, unknown>;
    const more = Object.entries(rest).map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`);
    return {
      time: String(time ?? "").slice(11, 23),
      level: String(level ?? "info"),
      text: String(message ?? ""),
      more: more.join(" "),
    };
  } catch {
    return { time: "", level: "info", text, more: "" };
  }
}

export function LogsPage(props: { rest: string }): JSX.Element {
  const tab = props.rest === "audit" ? "audit" : "log";
  return (
    <>
      <Tabs
        tabs={[
          ["log", t("log")],
          ["audit", t("audit")],
        ]}
        chosen={tab}
        choose={(next) => (location.hash = next === "audit" ? "logs/audit" : "logs")}
      />
      {tab === "audit" ? <AuditTab /> : <LogTab first={props.rest} />}
    </>
  );
}

function LogTab(props: { first: string }): JSX.Element {
  const live = useLive();
  const names = (live.system?.processes ?? []).map((process) => process.name);
  const [name, setName] = useState(props.first || "kernel");
  const [level, setLevel] = useState("");
  const [search, setSearch] = useState("");
  const [follow, setFollow] = useState(true);
  const lowest = level ? LEVELS.indexOf(level) : 0;
  return (
    <Panel title={t("log")}>
      <span class="actions">
        <label>
          {t("process")}
          <select value={name} onChange={(event) => setName(event.currentTarget.value)}>
            {[...new Set([name, ...names])].map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
        <label>
          {t("level")}
          <select value={level} onChange={(event) => setLevel(event.currentTarget.value)}>
            <option value="">{t("all")}</option>
            {LEVELS.slice(1, 4).map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
        <label>
          {t("search")}
          <input type="search" value={search} onInput={(event) => setSearch(event.currentTarget.value)} />
        </label>
        <label class="row">
          <input type="checkbox" checked={follow} onChange={(event) => setFollow(event.currentTarget.checked)} />
          {t("follow")}
        </label>
      </span>
      <LogLines key={name} name={name} lowest={lowest} search={search.toLowerCase()} follow={follow} />
    </Panel>
  );
}

function LogLines(props: { name: string; lowest: number; search: string; follow: boolean }): JSX.Element {
  const [lines, setLines] = useState<Line[]>([]);
  const fresh = useRef(true);
  const box = useRef<HTMLDivElement>(null);
  const error = useFeed<{ lines: string[] }>(
    `/logs/${props.name}?lines=${FIRST}&follow=${props.follow}`,
    (reply) => {
      const more = reply.lines.map(parsed);
      const begin = fresh.current;
      fresh.current = false;
      setLines((old) => (begin ? more : [...old, ...more]).slice(-KEPT));
    },
    props.follow,
  );
  useEffect(() => {
    fresh.current = true; // another stream begins with the last lines again
  }, [props.follow, error]);
  useEffect(() => {
    if (props.follow && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [lines, props.follow]);
  const shown = lines.filter(
    (line) =>
      LEVELS.indexOf(line.level) >= props.lowest &&
      (!props.search || `${line.text} ${line.more}`.toLowerCase().includes(props.search)),
  );
  return (
    <>
      <Trouble error={error} />
      <div class="log" ref={box} tabIndex={0} role="log" aria-label={props.name}>
        {shown.map((line, index) => (
          <div key={index} class={line.level}>
            <time>{line.time}</time> {line.text} <span class="dim">{line.more}</span>
          </div>
        ))}
        {!shown.length && <p class="dim">{t("nothing")}</p>}
      </div>
    </>
  );
}
