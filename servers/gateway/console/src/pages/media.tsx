// Images and sounds: what a model says that they are.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { post } from "../lib/api";
import { bytes, percent } from "../lib/format";
import { t } from "../lib/i18n";
import { Missing, ModelChoice } from "../ui/choice";
import { Meter, Panel } from "../ui/parts";

type Reply = { classifications: { labels: { name: string; score: number }[] }[]; model: string };
const SHOWN = 8;

async function base64(file: File): Promise<string> {
  const reader = new FileReader();
  return new Promise((resolve, reject) => {
    reader.onload = () => resolve(String(reader.result).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(reader.error ?? new Error(file.name));
    reader.readAsDataURL(file);
  });
}

export function MediaTab(props: { models: string[] }): JSX.Element {
  const [model, setModel] = useState(props.models[0] ?? "");
  const [file, setFile] = useState<File | null>(null);
  const [url, setUrl] = useState("");
  const [reply, setReply] = useState<Reply | null>(null);
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    if (!file) return;
    const made = URL.createObjectURL(file);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [file]);
  if (!props.models.length) return <Missing said={t("noMediaModels")} commands={[]} />;
  const classify = async (): Promise<void> => {
    if (!file) return;
    setBusy(true);
    setError("");
    setReply(null);
    try {
      const items = [{ file: await base64(file) }];
      setReply(await post<Reply>(`/models/${model}/classify`, { items, top: SHOWN }));
    } catch (cause) {
      setError(cause instanceof Error ? cause.message : String(cause));
    }
    setBusy(false);
  };
  const labels = reply?.classifications[0]?.labels ?? [];
  return (
    <div class="two">
      <Panel title={t("media")}>
        <ModelChoice label={t("model")} models={props.models} value={model} choose={setModel} />
        <label>
          {t("file")}
          <input type="file" accept="image/*,audio/*" onChange={(event) => setFile(event.currentTarget.files?.[0] ?? null)} />
        </label>
        {file && <p class="dim">{file.name}, {bytes(file.size)}</p>}
        {file?.type.startsWith("image/") && <img class="preview" src={url} alt={file.name} />}
        {file?.type.startsWith("audio/") && <audio controls src={url} />}
        <button class="strong" onClick={() => void classify()} disabled={busy || !file}>
          {t("classify")}
        </button>
        {error && <p class="trouble" role="alert">{error}</p>}
      </Panel>
      {reply && (
        <Panel title={t("labels")} side={<span class="dim">{reply.model}</span>}>
          <ul class="plain labels">
            {labels.map((label) => (
              <li key={label.name}>
                <span>{label.name}</span>
                <Meter share={label.score} label={label.name} />
                <span class="number">{label.score >= 0 && label.score <= 1 ? percent(label.score) : label.score.toFixed(2)}</span>
              </li>
            ))}
          </ul>
        </Panel>
      )}
    </div>
  );
}
