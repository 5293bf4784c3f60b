// Images and sounds: what a model reads in them, or says that they are.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { openai, post, tensors } from "../lib/api";
import { bytes, percent } from "../lib/format";
import { t } from "../lib/i18n";
import { Missing, ModelChoice } from "../ui/choice";
import { Meter, Panel } from "../ui/parts";

type Label = { name: string; score: number };
type Reply = { model: string; labels: Label[] | null; text: string };
type Said = { model: string; choices: { message: { content: string | null } }[] };
type Named = { model: string; classifications: { labels: Label[] }[] };
const SHOWN = 8;

async function dataUrl(file: File): Promise<string> {
  const reader = new FileReader();
  return new Promise((resolve, reject) => {
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error ?? new Error(file.name));
    reader.readAsDataURL(file);
  });
}

/** What the model reads in a file (its output `text`), or what it takes it for. */
async function ask(model: string, file: File): Promise<Reply> {
  const [url, about] = await Promise.all([dataUrl(file), tensors(model)]);
  const data = url.replace(/^[^,]*,/, "");
  if (about.outputs.some((output) => output.name === "text")) {
    const part = file.type.startsWith("image/")
      ? { type: "image_url", image_url: { url } }
      : { type: "input_audio", input_audio: { data, format: file.type.includes("wav") ? "wav" : "mp3" } };
    const messages = [{ role: "user", content: [part] }];
    const said = await openai<Said>("/chat/completions", { model, messages });
    return { model: said.model, labels: null, text: said.choices[0]?.message.content ?? "" };
  }
  const named = await post<Named>(`/models/${model}/classify`, { items: [{ file: data }], top: SHOWN });
  return { model: named.model, labels: named.classifications[0]?.labels ?? [], text: "" };
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
  const send = async (): Promise<void> => {
    if (!file) return;
    setBusy(true);
    setError("");
    setReply(null);
    try {
      setReply(await ask(model, file));
    } catch (cause) {
      setError(cause instanceof Error ? cause.message : String(cause));
    }
    setBusy(false);
  };
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
        <button class="strong" onClick={() => void send()} disabled={busy || !file}>
          {t("askModel")}
        </button>
        {error && <p class="trouble" role="alert">{error}</p>}
      </Panel>
      {reply && reply.labels === null && (
        <Panel title={t("reads")} side={<span class="dim">{reply.model}</span>}>
          <p class="reads" role="status">{reply.text || t("readsNothing")}</p>
        </Panel>
      )}
      {reply?.labels && (
        <Panel title={t("labels")} side={<span class="dim">{reply.model}</span>}>
          <ul class="plain labels">
            {reply.labels.map((label) => (
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
