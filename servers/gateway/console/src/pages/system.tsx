// The live picture: the kernel, every process on it, and how many messages pass between them.
import type { JSX } from "preact";
import { post } from "../lib/api";
import { bytes, clock, duration, rate } from "../lib/format";
import { useHistory } from "../lib/hooks";
import { t } from "../lib/i18n";
import { healthOf, useLive, type Health } from "../lib/system";
import type { News, Port, Process } from "../lib/types";
import { DoButton } from "../ui/actions";
import { Chart } from "../ui/chart";
import { Badge, Figure, Panel } from "../ui/parts";

const KEPT = 120;

type Node = { name: string; process: Process | null; port: Port | null };

/** Joins what init runs with what is attached to the kernel, by process id. */
function nodes(processes: Process[], ports: Port[]): Node[] {
  const found: Node[] = processes
    .filter((process) => process.name !== "kernel")
    .map((process) => ({
      name: process.name,
      process,
      port: ports.find((port) => port.pid === process.pid && process.pid !== 0) ?? null,
    }));
  const known = new Set(processes.map((process) => process.pid));
  for (const port of ports) {
    if (port.pid && !known.has(port.pid)) found.push({ name: port.name, process: null, port });
  }
  return found.sort((a, b) => Number(!a.port) - Number(!b.port)); // those without an edge come last
}

export function SystemPage(): JSX.Element {
  const live = useLive();
  const { system } = live;
  const history = useHistory(system ? [live.callsPerS, live.failedPerS] : null, KEPT, live.tick);
  if (!system) return <p class="dim">{t("waiting")}</p>;
  const { stats } = system;
  const all = nodes(system.processes ?? [], system.ports ?? []);
  const kernel = system.processes?.find((process) => process.name === "kernel");
  return (
    <>
      <Panel title={t("processes")} id="picture">
        <div class={`kernel ${stats ? "good" : "bad"}`}>
          <header>
            <b>{t("kernel")}</b>
            {stats && (
              <span class="dim">
                {t("pid", { pid: stats.pid })} · {t("up")} {duration(stats.uptime_s)}
                {kernel && ` · ${bytes(kernel.rss_bytes)}`}
              </span>
            )}
            {kernel && <RestartButton name="kernel" />}
          </header>
          {stats && (
            <div class="figures">
              <Figure value={rate(live.callsPerS)} name={t("callsPerS")} />
              <Figure value={rate(live.failedPerS)} name={t("failedPerS")} bad={live.failedPerS > 0} />
              <Figure value={stats.running} name={t("running")} />
              <Figure value={stats.queued} name={t("queued")} />
              <Figure value={stats.redispatched} name={t("redispatched")} />
              <Figure value={stats.faults} name={t("faults")} />
            </div>
          )}
        </div>
        <div class="nodes">
          {all.map((node) => (
            <NodeCard key={node.name} node={node} served={live.servedPerS.get(node.port?.port ?? 0) ?? 0} />
          ))}
        </div>
      </Panel>
      <div class="two">
        <Panel title={t("traffic")}>
          <Chart
            title={t("traffic")}
            lines={[
              { label: t("callsPerS"), colour: 1 },
              { label: t("failedPerS"), colour: 4 },
            ]}
            data={history}
          />
        </Panel>
        <Panel title={t("news")}>
          <NewsList news={live.news.slice(0, 12)} empty={t("newsNone")} />
        </Panel>
      </div>
    </>
  );
}

function NodeCard(props: { node: Node; served: number }): JSX.Element {
  const { name, process, port } = props.node;
  const health: Health = process
    ? healthOf(process, port?.stalled ?? false, port?.draining ?? false)
    : port?.stalled
      ? "bad"
      : "good";
  const state = port?.stalled ? t("stalled") : port?.draining ? t("draining") : (process?.state ?? t("attached"));
  return (
    <article class={`node ${health}`} data-name={name} data-pid={process?.pid ?? port?.pid ?? 0}>
      <div class={`edge ${port ? "on" : ""} ${props.served > 0 ? "busy" : ""}`}>{port ? `${rate(props.served)}/s` : ""}</div>
      <div class="body">
        <header>
          <b>{name}</b>
          <Badge state={state} health={health} />
        </header>
        <p class="dim">
          {process?.pid ? t("pid", { pid: process.pid }) : ""}
          {process?.rss_bytes ? ` · ${bytes(process.rss_bytes)}` : ""}
          {process?.uptime_s ? ` · ${t("up")} ${duration(process.uptime_s)}` : ""}
        </p>
        <p class="dim">
          {port ? `${port.running} ${t("running")}` : ""}
          {process?.restarts ? ` · ${t("restarts", { count: process.restarts })}` : ""}
          {process?.last_exit ? ` · ${process.last_exit}` : ""}
        </p>
        <footer>
          {process?.managed && <RestartButton name={name} />}
          {port && !port.draining && name !== "kernel" && <DrainButton name={name} port={port.port} />}
        </footer>
      </div>
    </article>
  );
}

function RestartButton(props: { name: string }): JSX.Element {
  const live = useLive();
  const { name } = props;
  return (
    <DoButton
      deed={() => ({
        verb: t("restart"),
        ask: t("restartAsk", { name }),
        why: t("restartWhy"),
        run: async () => {
          await post(`/processes/${name}/restart`);
          live.again();
          return t("restarted", { name });
        },
      })}
    >
      {t("restart")}
    </DoButton>
  );
}

function DrainButton(props: { name: string; port: number }): JSX.Element {
  const live = useLive();
  const { name, port } = props;
  return (
    <DoButton
      deed={() => ({
        verb: t("drain"),
        ask: t("drainAsk", { name }),
        why: t("drainWhy"),
        run: async () => {
          await post(`/kernel/ports/${port}/drain`);
          live.again();
          return t("drained", { name });
        },
      })}
    >
      {t("drain")}
    </DoButton>
  );
}

export function NewsList(props: { news: News[]; empty: string }): JSX.Element {
  if (!props.news.length) return <p class="dim">{props.empty}</p>;
  return (
    <ul class="news">
      {props.news.map((item) => {
        const facts = typeof item.payload === "string" ? { text: item.payload } : item.payload;
        const { at, ...others } = facts as { at?: number; [member: string]: unknown };
        return (
          <li key={`${item.publisher}${item.id}${item.topic}`}>
            <time>{clock(at ?? 0)}</time> <b>{item.topic}</b>{" "}
            <span>
              {Object.entries(others)
                .filter(([, value]) => value !== "" && value !== false)
                .map(([member, value]) => `${member} ${String(value)}`)
                .join(" · ")}
            </span>
          </li>
        );
      })}
    </ul>
  );
}
