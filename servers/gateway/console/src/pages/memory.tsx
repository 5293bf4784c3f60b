// What each device holds, and what came and went.
import type { JSX } from "preact";
import { get, post } from "../lib/api";
import { bytes, duration, percent } from "../lib/format";
import { usePoll } from "../lib/hooks";
import { t } from "../lib/i18n";
import { useLive } from "../lib/system";
import type { Device, Grant, News } from "../lib/types";
import { DoButton } from "../ui/actions";
import { Badge, Panel, Table, Trouble } from "../ui/parts";
import { NewsList } from "./system";

type Buffer = {
  id: string; size: number; owner: string; leases: number; sealed: boolean; age_s: number; label: string;
};
type Change = {
  unix_s: number; kind: string; id: string; device: string; bytes: number; wanted_by: string; tenant: string;
};
type Held = { devices: Device[]; grants: Grant[]; buffers: Buffer[]; changes: Change[] };

async function held(signal: AbortSignal): Promise<Held> {
  const [devices, grants, buffers, changes] = await Promise.all([
    get<{ devices: Device[] }>("/memory/devices", signal),
    get<{ grants: Grant[] }>("/memory/grants", signal),
    get<{ buffers: Buffer[] }>("/memory/buffers", signal),
    get<{ changes: Change[] }>("/memory/changes?limit=40", signal),
  ]);
  return { ...devices, ...grants, ...buffers, ...changes };
}

/** What the memory server remembers of before this page was opened, as news. */
function asNews(change: Change, index: number): News {
  return {
    id: index,
    topic: `grant.${change.kind}`,
    publisher: `memory ${change.unix_s}`,
    missed: 0,
    payload: {
      at: change.unix_s,
      id: change.id,
      device: change.device,
      size: bytes(change.bytes),
      for: change.wanted_by,
      tenant: change.tenant,
    },
  };
}

const timeOf = (item: News): number => (typeof item.payload === "string" ? 0 : (item.payload.at ?? 0));

export function MemoryPage(): JSX.Element {
  const live = useLive();
  const polled = usePoll(held, 2);
  const heard = live.news.filter((item) => /^(model|memory|grant|residency)\./.test(item.topic));
  const news = [...heard, ...(polled.value?.changes ?? []).map(asNews)].sort((a, b) => timeOf(b) - timeOf(a));
  return (
    <>
      <Trouble error={polled.error} />
      <Panel title={t("devices")}>
        {polled.value?.devices.map((device) => (
          <DeviceMap
            key={device.name}
            device={device}
            grants={polled.value?.grants.filter((grant) => grant.device === device.name) ?? []}
          />
        )) ?? <p class="dim">{t("waiting")}</p>}
      </Panel>
      <Panel title={t("residentModels")}>
        <GrantTable grants={polled.value?.grants ?? []} again={polled.again} />
      </Panel>
      <div class="two">
        <Panel title={t("comings")}>
          <NewsList news={news.slice(0, 30)} empty={t("comingsNone")} />
        </Panel>
        <Panel title={t("buffers")}>
          <BufferTable buffers={polled.value?.buffers ?? []} />
        </Panel>
      </div>
    </>
  );
}

const colourOf = (index: number): string => `c${(index % 4) + 1}`;

/** The budget as a bar: one part for each grant, and what is left. */
function DeviceMap(props: { device: Device; grants: Grant[] }): JSX.Element {
  const { device, grants } = props;
  const budget = Math.max(device.budget_bytes, device.granted_bytes, 1);
  return (
    <div class="device">
      <header>
        <b>{device.name}</b> <span class="dim">{device.description}</span>
        <span class="grow" />
        <span>
          {bytes(device.granted_bytes)} {t("granted")} / {bytes(device.budget_bytes)} {t("budget")} ·{" "}
          {bytes(device.free_bytes)} {t("free")}
        </span>
      </header>
      <div class="map" role="img" aria-label={`${device.name}: ${percent(device.granted_bytes / budget)} ${t("granted")}`}>
        {grants.map((grant, index) => (
          <span
            key={grant.id}
            class={`grant ${colourOf(index)}`}
            style={{ width: `${(grant.bytes / budget) * 100}%` }}
            title={`${grant.id}: ${bytes(grant.bytes)}`}
          >
            <i style={{ width: `${Math.min(1, grant.used_bytes / Math.max(1, grant.bytes)) * 100}%` }} />
            <em>{grant.id}</em>
          </span>
        ))}
      </div>
      {grants.length > 0 && (
        <ul class="key-of">
          {grants.map((grant, index) => (
            <li key={grant.id} class={colourOf(index)}>
              <i />
              {grant.id} <span class="dim">{bytes(grant.bytes)}</span>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}

function GrantTable(props: { grants: Grant[]; again: () => void }): JSX.Element {
  return (
    <Table
      label={t("residentModels")}
      rows={props.grants}
      id={(grant) => `${grant.device}/${grant.id}`}
      columns={[
        { title: t("name"), cell: (grant) => grant.id },
        { title: t("device"), cell: (grant) => grant.device },
        { title: t("grant"), number: true, cell: (grant) => bytes(grant.bytes) },
        { title: t("used"), number: true, cell: (grant) => (grant.used_bytes ? bytes(grant.used_bytes) : "–") },
        {
          title: t("state"),
          cell: (grant) => (
            <>
              <Badge
                state={grant.busy ? t("busy") : t("idle", { time: duration(grant.idle_s) })}
                health={grant.busy ? "good" : "idle"}
              />
              {grant.pinned && <Badge state={t("pinned")} />}
            </>
          ),
        },
        { title: t("actions"), cell: (grant) => <UnloadButton grant={grant} again={props.again} /> },
      ]}
    />
  );
}

function UnloadButton(props: { grant: Grant; again: () => void }): JSX.Element {
  const ref = props.grant.id.replace(/#.*/, "");
  return (
    <DoButton
      deed={() => ({
        verb: t("unload"),
        ask: t("unloadAsk", { ref }),
        why: t("unloadWhy"),
        run: async () => {
          await post(`/models/${ref}/unload`);
          props.again();
          return t("unloaded", { ref });
        },
      })}
    >
      {t("unload")}
    </DoButton>
  );
}

function BufferTable(props: { buffers: Buffer[] }): JSX.Element {
  return (
    <Table
      label={t("buffers")}
      rows={props.buffers}
      id={(buffer) => buffer.id}
      columns={[
        { title: t("name"), cell: (buffer) => buffer.label || <code>{buffer.id.slice(0, 16)}</code> },
        { title: t("size"), number: true, cell: (buffer) => bytes(buffer.size) },
        { title: t("leases"), number: true, cell: (buffer) => buffer.leases },
        { title: t("age"), number: true, cell: (buffer) => duration(buffer.age_s) },
      ]}
    />
  );
}
