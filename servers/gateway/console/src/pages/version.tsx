// One version: what it is, where it came from, its aliases, and what can be done with it.
import type { JSX } from "preact";
import { useRef, useState } from "preact/hooks";
import { get, post } from "../lib/api";
import { bytes, count, moment } from "../lib/format";
import { usePoll } from "../lib/hooks";
import { t } from "../lib/i18n";
import type { Row, Version } from "../lib/types";
import { DoButton } from "../ui/actions";
import { Panel, Table, Trouble } from "../ui/parts";
import { LineageGraph } from "./lineage";

export function VersionPanel(props: { row: Row; again: () => void }): JSX.Element {
  const { ref } = props.row;
  const polled = usePoll(
    (signal) => get<{ version: Version }>(`/versions/${ref}`, signal),
    10,
    ref,
  );
  const version = polled.value?.version ?? props.row.version;
  return (
    <Panel title={t("details", { ref })} side={<RemoveButton {...props} />}>
      <Trouble error={polled.error} />
      {props.row.model?.reason && <p class={props.row.model.state === "failed" ? "trouble" : "dim"}>{props.row.model.reason}</p>}
      <div class="two">
        <div>
          <Facts version={version} />
          <h3>{t("aliases")}</h3>
          <Aliases {...props} />
        </div>
        <div>
          {version.metrics.length > 0 && <h3>{t("measured")}</h3>}
          <dl class="wide">
            {version.metrics.map((metric) => (
              <div key={metric.name}>
                <dt>{metric.name}</dt>
                <dd>
                  {metric.unit === "bytes" ? bytes(metric.value) : `${Number(metric.value.toPrecision(6))} ${metric.unit}`}
                </dd>
              </div>
            ))}
          </dl>
        </div>
      </div>
      <h3>{t("lineage")}</h3>
      <LineageGraph ref_={ref} />
      <h3>{t("files")}</h3>
      <Table
        label={t("files")}
        rows={version.files}
        id={(file) => file.name}
        columns={[
          { title: t("name"), cell: (file) => file.name },
          { title: t("size"), number: true, cell: (file) => bytes(file.size) },
          { title: "sha256", cell: (file) => <code>{file.sha256}</code> },
        ]}
      />
    </Panel>
  );
}

function Facts(props: { version: Version }): JSX.Element {
  const { version } = props;
  const tags = Object.entries(version.tags).map(([key, value]) => (value ? `${key}=${value}` : key));
  const facts: [string, string][] = [
    [t("task"), [version.task, version.architecture].filter(Boolean).join(" · ")],
    [t("format"), [version.format, version.dtype].filter(Boolean).join(" · ")],
    [t("parameters"), version.parameters ? count(version.parameters) : ""],
    [t("context"), version.context_length ? `${version.context_length} ${t("tokens")}` : ""],
    [t("license"), version.license],
    [t("source"), version.lineage?.source ?? ""],
    [t("tags"), tags.join(", ")],
    [t("signedBy"), version.signed_by.join(", ")],
    [t("created"), moment(version.created_unix_s)],
    [t("digest"), version.digest],
  ];
  return (
    <dl>
      {facts
        .filter(([, value]) => value)
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}

function Aliases(props: { row: Row; again: () => void }): JSX.Element {
  const { row } = props;
  const { name, version } = row.version;
  const [alias, setAlias] = useState("");
  const field = useRef<HTMLInputElement>(null);
  const shown = `${name}@${alias}`;
  return (
    <>
      <ul class="plain">
        {row.aliases.map((one) => (
          <li key={one.alias}>
            <code>
              {name}@{one.alias}
            </code>{" "}
            <DoButton
              deed={() => ({
                verb: t("rollback"),
                ask: t("rollbackAsk", { alias: `${name}@${one.alias}` }),
                why: t("rollbackWhy"),
                run: async () => {
                  const path = `/aliases/${name}/${one.alias}/rollback`;
                  const reply = await post<{ alias: { version: number } }>(path, {
                    expected_revision: one.revision,
                  });
                  props.again();
                  return t("aliasDone", { alias: one.alias, ref: `${name}@${reply.alias.version}` });
                },
              })}
            >
              {t("rollback")}
            </DoButton>
          </li>
        ))}
      </ul>
      <span class="actions">
        <input
          ref={field}
          size={18}
          placeholder={t("aliasName")}
          aria-label={t("aliasName")}
          value={alias}
          onInput={(event) => setAlias(event.currentTarget.value)}
        />
        <DoButton
          off={!alias}
          deed={() => ({
            verb: t("aliasSet"),
            ask: t("aliasAsk", { alias: shown, ref: row.ref }),
            why: t("aliasWhy", { alias: shown }),
            run: async () => {
              await post(`/aliases/${name}/${encodeURIComponent(alias)}`, { version });
              setAlias("");
              props.again();
              return t("aliasDone", { alias: shown, ref: row.ref });
            },
          })}
        >
          {t("aliasSet")}
        </DoButton>
      </span>
    </>
  );
}

function RemoveButton(props: { row: Row; again: () => void }): JSX.Element {
  const { ref } = props.row;
  return (
    <DoButton
      deed={() => ({
        verb: t("remove"),
        ask: t("removeAsk", { ref }),
        why: t("removeWhy"),
        run: async () => {
          await post(`/versions/${ref}/delete`);
          location.hash = "models";
          props.again();
          return t("removed", { ref });
        },
      })}
    >
      {t("remove")}
    </DoButton>
  );
}
