// The audit log of storage: who changed what, and whether the log is intact.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { get } from "../lib/api";
import { moment } from "../lib/format";
import { usePoll } from "../lib/hooks";
import { t } from "../lib/i18n";
import type { Entry } from "../lib/types";
import { DoButton } from "../ui/actions";
import { Panel, Table, Trouble } from "../ui/parts";

const PAGE = 50;
type Reply = { entries: Entry[]; more: boolean };

export function AuditTab(): JSX.Element {
  const [subject, setSubject] = useState("");
  const [before, setBefore] = useState(0); // show what is older than this; 0 = the newest
  const path = before
    ? `/audit?after_seq=${Math.max(0, before - PAGE - 1)}&page_size=${Math.min(PAGE, before - 1)}`
    : `/audit?newest=true&page_size=${PAGE}`;
  const filter = subject ? `&subject=${encodeURIComponent(subject)}` : "";
  const polled = usePoll((signal) => get<Reply>(path + filter, signal), 5, path + filter);
  const entries = [...(polled.value?.entries ?? [])].sort((a, b) => b.seq - a.seq);
  const oldest = entries.at(-1)?.seq ?? 1;
  return (
    <Panel title={t("audit")} side={<VerifyButton />}>
      <Trouble error={polled.error} />
      <label>
        {t("subject")}
        <input type="search" value={subject} onChange={(event) => { setBefore(0); setSubject(event.currentTarget.value); }} />
      </label>
      <Table
        label={t("audit")}
        rows={entries}
        id={(entry) => entry.seq}
        empty={polled.value ? t("nothing") : t("waiting")}
        columns={[
          { title: "#", number: true, cell: (entry) => entry.seq },
          { title: t("when"), cell: (entry) => <span class="whole">{moment(entry.at_unix_ms / 1000)}</span> },
          { title: t("who"), cell: (entry) => entry.actor },
          { title: t("what"), cell: (entry) => entry.action },
          { title: t("subject"), cell: (entry) => entry.subject },
          { title: t("detail"), cell: (entry) => <code class="detail">{entry.detail_json}</code> },
        ]}
      />
      {!subject && (
        <span class="actions">
          <button class="small" onClick={() => setBefore(0)} disabled={before === 0}>{t("newest")}</button>
          <button class="small" onClick={() => setBefore(oldest)} disabled={oldest <= 1}>{t("older")}</button>
        </span>
      )}
    </Panel>
  );
}

function VerifyButton(): JSX.Element {
  return (
    <DoButton
      deed={() => ({
        verb: t("verify"),
        run: async () => {
          const head = await get<{ seq: number; hash: string }>("/audit/check");
          return t("verified", { seq: head.seq, hash: head.hash.slice(0, 16) });
        },
      })}
    >
      {t("verify")}
    </DoButton>
  );
}
