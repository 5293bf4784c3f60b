// One conversation with one model: its turns, and the answer that is being streamed.
import { useRef, useState } from "preact/hooks";
import { chat } from "../lib/api";
import { duration } from "../lib/format";
import { t } from "../lib/i18n";

export type Settings = {
  system: string;
  temperature: number;
  topP: number;
  maxTokens: number;
  seed: string;
};

export type Turn = {
  role: "user" | "assistant";
  text: string;
  /** Speed, or why it ended otherwise than the model wanted. */
  note?: string;
  failed?: boolean;
};
export type Talk = { turns: Turn[]; busy: boolean };
export const EMPTY: Talk = { turns: [], busy: false };

type Talking = { talk: Talk; say: (text: string) => Promise<void>; stop: () => void; clear: () => void };

export function useTalk(model: string, settings: Settings): Talking {
  const [talk, setTalk] = useState<Talk>(EMPTY);
  const stopper = useRef<AbortController | null>(null);

  const say = async (text: string): Promise<void> => {
    const stop = new AbortController();
    stopper.current = stop;
    const heard = talk.turns.filter((turn) => !turn.failed);
    const turns: Turn[] = [...heard, { role: "user", text }];
    const answer: Turn = { role: "assistant", text: "" };
    const show = (busy: boolean): void => setTalk({ turns: [...turns, { ...answer }], busy });
    show(true);
    try {
      answer.note = await stream(model, turns, settings, stop.signal, (more) => {
        answer.text += more;
        show(true);
      });
    } catch (cause) {
      answer.failed = !stop.signal.aborted;
      answer.note = stop.signal.aborted ? t("stopped") : cause instanceof Error ? cause.message : String(cause);
    }
    if (stopper.current === stop) show(false);
  };
  const stop = (): void => stopper.current?.abort();
  const clear = (): void => {
    stop();
    stopper.current = null;
    setTalk(EMPTY);
  };
  return { talk, say, stop, clear };
}

/** Streams an answer to `take`; returns how fast it was. */
async function stream(
  model: string,
  turns: Turn[],
  settings: Settings,
  signal: AbortSignal,
  take: (text: string) => void,
): Promise<string> {
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const messages = [...system, ...turns.map((turn) => ({ role: turn.role, content: turn.text }))];
  const request = {
    model,
    messages,
    temperature: settings.temperature,
    top_p: settings.topP,
    max_tokens: settings.maxTokens,
    ...(settings.seed ? { seed: Number(settings.seed) } : {}),
  };
  const begin = performance.now();
  let first = 0;
  let tokens = 0;
  let finish = "";
  for await (const piece of chat(request, signal)) {
    if (piece.text && !first) first = performance.now();
    if (piece.text) take(piece.text);
    if (piece.finish) finish = piece.finish;
    if (piece.usage) tokens = piece.usage.completion_tokens;
  }
  const decode = (performance.now() - first) / 1000;
  const speed = t("speed", {
    count: tokens,
    rate: tokens > 1 && decode > 0 ? ((tokens - 1) / decode).toFixed(1) : "–",
    first: duration(((first || performance.now()) - begin) / 1000),
  });
  return finish === "length" ? `${speed} · ${t("cut")}` : speed;
}
