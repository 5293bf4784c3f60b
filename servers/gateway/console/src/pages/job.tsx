// One job as it goes on: progress, curves, and how its results compare with the original.
import type { JSX } from "preact";
import { useRef, useState } from "preact/hooks";
import { post } from "../lib/api";
import { bytes, percent } from "../lib/format";
import { useFeed } from "../lib/hooks";
import { stateWord, t } from "../lib/i18n";
import { kindOf, took } from "../lib/jobs";
import type { Job } from "../lib/types";
import { DoButton } from "../ui/actions";
import { Chart } from "../ui/chart";
import { Badge, Meter, Panel, Table, Trouble } from "../ui/parts";
import { TrainingPart } from "./training";

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

export function JobPanel(props: { id: string; again: () => void }): JSX.Element {
  const { id } = props;
  const [job, setJob] = useState<Job | null>(null);
  const progress = useRef<[number[], number[]]>([[], []]);
  const error = useFeed<{ job: Job }>(
    `/jobs/${id}/watch`,
    (reply) => {
      progress.current[0].push(Date.now() / 1000);
      progress.current[1].push(reply.job.progress);
      setJob(reply.job);
      if (ENDED.has(reply.job.state)) props.again();
    },
    !(job && ENDED.has(job.state)),
  );
  if (!job) return error ? <Trouble error={error} /> : <p class="dim">{t("waiting")}</p>;
  const [kind, model] = kindOf(job);
  const running = !ENDED.has(job.state);
  return (
    <Panel title={`${kind} ${model}`} side={running && <Steering job={job} />}>
      <p>
        <Badge state={job.state} /> {job.stage} · {took(job)}
        {job.attempts > 1 && ` · ${t("attempts", { count: job.attempts })}`}
      </p>
      <p class="progress">
        <Meter share={job.progress} label={t("progress")} /> {percent(job.progress)}
      </p>
      {job.error && <p class="trouble" role="alert">{job.error}</p>}
      {job.results.length > 0 && (
        <p class="actions">
          {t("result")}:
          {job.results.map((ref) => (
            <a key={ref} class="button small" href={`#models/${ref}`}>
              {ref}
            </a>
          ))}
        </p>
      )}
      {job.training?.steps ? (
        <TrainingPart id={id} training={job.training} over={!running} />
      ) : (
        running && (
          <Chart
            title={t("progress")}
            lines={[{ label: t("progress"), colour: 1 }]}
            data={progress.current.map((column) => [...column])}
          />
        )
      )}
      {job.comparisons.length > 0 && <Comparisons job={job} />}
    </Panel>
  );
}

/** Not every kind of job compares vectors: 0 is what was not measured. */
const cosine = (value: number): string => (value ? value.toFixed(5) : "–");

function figure(measure: { value: number | null; unit: string }): string {
  if (measure.value === null) return "–";
  if (measure.unit === "bytes") return bytes(measure.value);
  return `${Number(measure.value.toPrecision(4))} ${measure.unit}`.trim();
}

function Comparisons(props: { job: Job }): JSX.Element {
  return (
    <>
      <h3>{t("comparisons")}</h3>
      <Table
        label={t("comparisons")}
        rows={props.job.comparisons}
        id={(one) => one.label}
        columns={[
          { title: t("version"), cell: (one) => one.label },
          { title: t("model"), cell: (one) => <a href={`#models/${one.ref}`}>{one.ref}</a> },
          { title: t("cosineMin"), number: true, cell: (one) => cosine(one.cosine_min) },
          { title: t("cosineMean"), number: true, cell: (one) => cosine(one.cosine_mean) },
          { title: t("size"), number: true, cell: (one) => bytes(one.size_bytes) },
          { title: t("latencyOne"), number: true, cell: (one) => (one.latency_s ? `${(one.latency_s * 1000).toFixed(1)} ms` : "–") },
          {
            title: t("measured"),
            cell: (one) =>
              (one.measures ?? [])
                .map((m) => `${m.name} ${figure(m)}`)
                .join(", "),
          },
        ]}
      />
    </>
  );
}

function Steering(props: { job: Job }): JSX.Element {
  const { id, state } = props.job;
  const [verb, word, said] =
    state === "paused"
      ? (["resume", t("resume"), t("resumedJob", { id })] as const)
      : (["pause", t("pause"), t("pausedJob", { id })] as const);
  return (
    <span class="actions">
      <DoButton
        deed={() => ({
          verb: word,
          run: async () => {
            await post(`/jobs/${id}/${verb}`);
            return said;
          },
        })}
      >
        {word}
      </DoButton>
      <DoButton
        deed={() => ({
          verb: t("cancelJob"),
          ask: t("cancelJobAsk", { id }),
          why: t("cancelJobWhy"),
          run: async () => {
            const { job } = await post<{ job: Job }>(`/jobs/${id}/cancel`);
            return t("cancelledJob", { id, state: stateWord(job.state) });
          },
        })}
      >
        {t("cancelJob")}
      </DoButton>
    </span>
  );
}
