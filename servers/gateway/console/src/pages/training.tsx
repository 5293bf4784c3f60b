// How a training goes: its figures now, and its losses since its first step.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { feed, get } from "../lib/api";
import { duration, rate } from "../lib/format";
import { t } from "../lib/i18n";
import type { Training } from "../lib/types";
import { Chart } from "../ui/chart";
import { Figure } from "../ui/parts";

// The optimizer writes a line of JSON for each measurement into this artifact of the job.
const MEASURES = "training.jsonl";
type Measure = { step: number; loss: number | null; validation_loss: number | null };

function unhex(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

/** Reads what was measured before this page was opened; a job has no such file at first. */
async function former(id: string, signal: AbortSignal): Promise<Measure[]> {
  const { artifacts } = await get<{ artifacts: { name: string }[] }>(`/jobs/${id}/artifacts`, signal);
  if (!artifacts.some((artifact) => artifact.name === MEASURES)) return [];
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  for await (const piece of feed<{ data: string }>(`/jobs/${id}/artifacts/${MEASURES}`, signal)) {
    pieces.push(unhex(piece.data));
  }
  const text = await new Blob(pieces).text();
  const whole = text.slice(0, text.lastIndexOf("\n") + 1); // the last line may be half written
  return whole.split("\n").filter(Boolean).map((line) => JSON.parse(line) as Measure);
}

export function TrainingPart(props: { id: string; training: Training; over: boolean }): JSX.Element {
  const { id, training, over } = props;
  const [measures, setMeasures] = useState<Measure[]>([]);
  const [error, setError] = useState("");
  useEffect(() => {
    const stop = new AbortController();
    former(id, stop.signal)
      .then((old) => setMeasures((now) => merged(old, now)))
      .catch((cause: unknown) => {
        if (!stop.signal.aborted) setError(cause instanceof Error ? cause.message : String(cause));
      });
    return () => stop.abort();
  }, [id, over]);
  const last = useRef(-1);
  useEffect(() => {
    if (training.step === last.current || training.loss === null) return;
    last.current = training.step;
    setMeasures((now) => merged(now, [training]));
  }, [training.step, training.loss]);
  const data = [
    measures.map((one) => one.step),
    measures.map((one) => one.loss),
    measures.map((one) => one.validation_loss),
  ];
  return (
    <>
      <div class="figures">
        <Figure value={training.loss?.toPrecision(4) ?? "–"} name={t("loss")} />
        {training.validation_loss !== null && (
          <Figure value={training.validation_loss.toPrecision(4)} name={t("validationLoss")} />
        )}
        <Figure value={training.learning_rate.toPrecision(3)} name={t("learningRate")} />
        <Figure value={rate(training.rate)} name={training.rate_unit} />
        {training.epsilon > 0 && <Figure value={training.epsilon.toPrecision(3)} name="ε" />}
      </div>
      <p class="dim">
        {t("step", { step: training.step, steps: training.steps })}
        {!over && training.eta_s > 0 && ` · ${t("eta", { time: duration(training.eta_s) })}`}
      </p>
      {error && <p class="dim">{error}</p>}
      <Chart
        title={t("curves")}
        time={false}
        lines={[
          { label: t("loss"), colour: 1 },
          { label: t("validationLoss"), colour: 2 },
        ]}
        data={data}
      />
    </>
  );
}

/** Both in order of their steps, each step once. */
function merged(some: Measure[], more: Measure[]): Measure[] {
  const by = new Map([...some, ...more].map((one) => [one.step, one]));
  return [...by.values()].sort((a, b) => a.step - b.step);
}
