// Jobs of the optimizer: submit, follow, compare, cancel.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { get, post } from "../lib/api";
import { moment, percent } from "../lib/format";
import { useKept, usePoll } from "../lib/hooks";
import { t } from "../lib/i18n";
import { kindOf } from "../lib/jobs";
import type { Job } from "../lib/types";
import { DoButton } from "../ui/actions";
import { Badge, Meter, Panel, Table, Trouble } from "../ui/parts";
import { JobPanel } from "./job";

export function JobsPage(props: { rest: string }): JSX.Element {
  const polled = usePoll((signal) => get<{ jobs: Job[] }>("/jobs", signal), 2);
  const chosen = polled.value?.jobs.find((job) => job.id === props.rest);
  return (
    <>
      <Trouble error={polled.error} />
      {chosen && <JobPanel key={chosen.id} id={chosen.id} again={polled.again} />}
      <Panel title={t("jobs")}>
        <Table
          label={t("jobs")}
          rows={polled.value?.jobs ?? []}
          id={(job) => job.id}
          chosen={chosen?.id ?? ""}
          empty={polled.value ? t("noJobs") : t("waiting")}
          columns={[
            { title: t("name"), cell: (job) => <a class="whole" href={`#jobs/${job.id}`}>{job.id}</a> },
            { title: t("kind"), cell: (job) => <span class="whole">{kindOf(job)[0]}</span> },
            { title: t("model"), cell: (job) => kindOf(job)[1] },
            { title: t("state"), cell: (job) => <Badge state={job.state} /> },
            {
              title: t("progress"),
              cell: (job) => (
                <span class="whole">
                  <Meter share={job.progress} label={job.id} /> {percent(job.progress)}
                </span>
              ),
            },
            { title: t("submitted"), cell: (job) => <span class="whole">{moment(job.submitted_unix_s)}</span> },
            { title: t("result"), cell: (job) => <ResultOf job={job} /> },
          ]}
        />
      </Panel>
      <NewJob again={polled.again} />
    </>
  );
}

function ResultOf(props: { job: Job }): JSX.Element {
  const { job } = props;
  if (job.error || !job.results.length) return <>{job.error || job.stage}</>;
  return (
    <div>
      {job.results.map((ref) => (
        <div key={ref}>
          <a class="whole" href={`#models/${ref}`}>{ref}</a>
        </div>
      ))}
    </div>
  );
}

const TEMPLATE = JSON.stringify({ export_onnx: { model: "all-minilm-l6-v2" } }, null, 2);

function NewJob(props: { again: () => void }): JSX.Element {
  const [text, setText] = useKept("spec", TEMPLATE);
  const [wrong, setWrong] = useState("");
  const read = (): object => {
    const spec: unknown = JSON.parse(text);
    if (typeof spec !== "object" || spec === null || Array.isArray(spec)) throw new Error(typeof spec);
    return spec;
  };
  return (
    <Panel title={t("newJob")}>
      <label>
        {t("jobSpec")}
        <textarea
          class="code"
          rows={5}
          spellcheck={false}
          value={text}
          onInput={(event) => {
            setText(event.currentTarget.value);
            setWrong("");
          }}
        />
      </label>
      {wrong && <p class="trouble" role="alert">{wrong}</p>}
      <DoButton
        deed={() => ({
          verb: t("submit"),
          run: async () => {
            let spec: object;
            try {
              spec = read();
            } catch (cause) {
              const said = t("notJson", { cause: cause instanceof Error ? cause.message : "" });
              setWrong(said);
              throw new Error(said);
            }
            const request_id = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
            const { job } = await post<{ job: Job }>("/jobs", { spec, request_id });
            location.hash = `jobs/${job.id}`;
            props.again();
            return t("submittedJob", { id: job.id });
          },
        })}
      >
        {t("submit")}
      </DoButton>
    </Panel>
  );
}
