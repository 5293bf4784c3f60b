// Who waits for what, who pays, and how long things take.
import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { get, metricsText, post } from "../lib/api";
import { duration, rate, short } from "../lib/format";
import { useHistory, usePoll } from "../lib/hooks";
import { t } from "../lib/i18n";
import { histogram, quantile, type Histogram } from "../lib/prometheus";
import { useLive } from "../lib/system";
import type { Call, Queue, Tenant } from "../lib/types";
import { DoButton } from "../ui/actions";
import { Chart } from "../ui/chart";
import { Badge, Panel, Table, Trouble } from "../ui/parts";

const KEPT = 120;
const CLASSES = ["SYSTEM", "INTERACTIVE", "NORMAL", "BATCH"];
const FIRST_TOKEN = "llmos_gateway_time_to_first_token_seconds";
const PER_TOKEN = "llmos_gateway_time_per_output_token_seconds";

export function QueuesPage(): JSX.Element {
  const live = useLive();
  const { system } = live;
  const stats = system?.stats;
  const load = useHistory(stats ? [stats.running, stats.queued] : null, KEPT, live.tick);
  const calls = usePoll((signal) => get<{ calls: Call[]; total: number }>("/kernel/calls?page_size=200", signal), 2);
  const queues = (system?.services ?? []).flatMap((service) =>
    service.queues.map((queue) => ({ service: service.service, ...queue })),
  );
  queues.sort((a, b) => b.queued - a.queued);
  return (
    <>
      <div class="two">
        <Panel title={t("waitingCalls")}>
          <Chart
            title={t("waitingCalls")}
            lines={[
              { label: t("running"), colour: 1 },
              { label: t("queued"), colour: 2 },
            ]}
            data={load}
          />
        </Panel>
        <Panel title={t("latency")}>
          <Latency />
        </Panel>
      </div>
      <Panel title={t("queueTable")}>
        <QueueTable queues={queues} />
      </Panel>
      <Panel title={t("tenants")}>
        <TenantTable tenants={system?.tenants ?? []} />
      </Panel>
      <Panel title={t("calls")} side={<span class="dim">{calls.value?.total ?? ""}</span>}>
        <Trouble error={calls.error} />
        <CallTable calls={calls.value?.calls ?? []} again={calls.again} />
      </Panel>
    </>
  );
}

/** Quantiles of what this gateway's histograms gained between two looks. */
function Latency(): JSX.Element {
  const before = useRef<{ first: Histogram; each: Histogram } | null>(null);
  const tick = useRef(0);
  const polled = usePoll(async (signal) => {
    const text = await metricsText(signal);
    const now = { first: histogram(text, FIRST_TOKEN), each: histogram(text, PER_TOKEN) };
    const old = before.current;
    before.current = now;
    tick.current += 1;
    if (!old) return [null, null, null];
    return [
      quantile(old.first, now.first, 0.5),
      quantile(old.first, now.first, 0.95),
      quantile(old.each, now.each, 0.5),
    ];
  }, 2);
  const data = useHistory(polled.value, KEPT, tick.current);
  return (
    <>
      <Trouble error={polled.error} />
      <Chart
        title={t("latency")}
        none={t("latencyNone")}
        lines={[
          { label: `${t("firstToken")} p50`, colour: 1, points: true },
          { label: `${t("firstToken")} p95`, colour: 2, points: true },
          { label: `${t("perToken")} p50`, colour: 3, points: true },
        ]}
        data={data}
      />
    </>
  );
}

function QueueTable(props: { queues: (Queue & { service: string })[] }): JSX.Element {
  return (
    <Table
      label={t("queueTable")}
      rows={props.queues}
      id={(queue) => `${queue.service}/${queue.key}`}
      empty={t("nothingWaits")}
      columns={[
        { title: t("key"), cell: (q) => (<>{q.key || "–"} {q.faulting && <Badge state={t("loading")} health="warn" />}</>) },
        { title: t("service"), cell: (q) => short(q.service) },
        { title: t("queued"), number: true, cell: (q) => q.queued },
        ...CLASSES.map((title, i) => ({ title, number: true, cell: (q: Queue) => q.by_class[i] ?? 0 })),
        { title: t("oldest"), number: true, cell: (q) => duration(q.oldest_s) },
      ]}
    />
  );
}

function TenantTable(props: { tenants: Tenant[] }): JSX.Element {
  const live = useLive();
  return (
    <Table
      label={t("tenants")}
      rows={props.tenants}
      id={(tenant) => tenant.limits.tenant}
      columns={[
        { title: t("tenant"), cell: (one) => one.limits.tenant },
        { title: t("open"), number: true, cell: (one) => one.open },
        { title: t("ended"), number: true, cell: (one) => rate(live.endedPerS.get(one.limits.tenant) ?? 0) },
        { title: t("cost"), number: true, cell: (one) => Number(one.cost.toPrecision(4)) },
        { title: t("weight"), number: true, cell: (one) => one.limits.weight ?? 1 },
        { title: t("maxCalls"), number: true, cell: (one) => one.limits.max_calls || "∞" },
        { title: t("actions"), cell: (one) => <LimitsButton tenant={one} /> },
      ]}
    />
  );
}

function LimitsButton(props: { tenant: Tenant }): JSX.Element {
  const live = useLive();
  const { limits } = props.tenant;
  const weight = useRef<HTMLInputElement>(null);
  const most = useRef<HTMLInputElement>(null);
  return (
    <DoButton
      deed={() => ({
        verb: t("change"),
        ask: t("limitsAsk", { tenant: limits.tenant }),
        why: t("limitsWhy"),
        fields: (
          <>
            <label>
              {t("weight")}
              <input ref={weight} type="number" min="0.01" step="any" defaultValue={String(limits.weight ?? 1)} required />
            </label>
            <label>
              {t("maxCalls")}
              <input ref={most} type="number" min="0" step="1" defaultValue={String(limits.max_calls ?? 0)} required />
            </label>
          </>
        ),
        run: async () => {
          const change = {
            tenant: limits.tenant,
            weight: weight.current?.valueAsNumber,
            max_calls: most.current?.valueAsNumber,
          };
          await post("/kernel/limits", { tenants: [change] });
          live.again();
          return t("limitsDone", { tenant: limits.tenant });
        },
      })}
    >
      {t("change")}
    </DoButton>
  );
}

function CallTable(props: { calls: Call[]; again: () => void }): JSX.Element {
  const live = useLive();
  const ports = new Map((live.system?.ports ?? []).map((port) => [port.port, port.name]));
  return (
    <Table
      label={t("calls")}
      rows={props.calls}
      id={(call) => call.id}
      columns={[
        { title: t("method"), cell: (call) => short(call.method) },
        { title: t("key"), cell: (call) => call.key || "–" },
        { title: t("class"), cell: (call) => call.call_class },
        { title: t("tenant"), cell: (call) => call.tenant },
        { title: t("caller"), cell: (call) => call.caller },
        { title: t("onPort"), cell: (call) => (call.server ? (ports.get(call.server) ?? call.server) : t("queued")) },
        { title: t("age"), number: true, cell: (call) => duration(call.age_s) },
        {
          title: t("actions"),
          cell: (call) => (
            <DoButton
              deed={() => ({
                verb: t("cancelCall"),
                ask: t("cancelAsk", { id: call.id }),
                why: t("cancelWhy"),
                run: async () => {
                  await post(`/kernel/calls/${call.id}/cancel`);
                  props.again();
                  return t("cancelled", { id: call.id });
                },
              })}
            >
              {t("cancelCall")}
            </DoButton>
          ),
        },
      ]}
    />
  );
}
