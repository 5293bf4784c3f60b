// Trying models: chat, embeddings, images and sounds.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { apiKey, get, keepApiKey } from "../lib/api";
import { usePoll } from "../lib/hooks";
import { t } from "../lib/i18n";
import type { Model } from "../lib/types";
import { Tabs, Trouble } from "../ui/parts";
import { ChatTab } from "./chat";
import { EmbedTab } from "./embed";
import { MediaTab } from "./media";

type Tab = "chat" | "embeddings" | "media";

export function PlaygroundPage(props: { rest: string }): JSX.Element {
  const [name = "chat", ref = ""] = props.rest.split("/");
  const tab: Tab = name === "embeddings" || name === "media" ? name : "chat";
  const polled = usePoll((signal) => get<{ models: Model[] }>("/models", signal), 5);
  const of = (task: string): string[] =>
    (polled.value?.models ?? [])
      .filter((model) => model.task === task && model.engine)
      .map((model) => `${model.name}@${model.version}`)
      .reverse();
  return (
    <>
      <Tabs<Tab>
        tabs={[
          ["chat", t("chat")],
          ["embeddings", t("embeddings")],
          ["media", t("media")],
        ]}
        chosen={tab}
        choose={(next) => (location.hash = `playground/${next}`)}
      />
      <Trouble error={polled.error} />
      <KeyField />
      {!polled.value && <p class="dim">{t("waiting")}</p>}
      {polled.value && tab === "chat" && <ChatTab models={of("generate")} first={ref} />}
      {polled.value && tab === "embeddings" && <EmbedTab models={of("embed")} />}
      {polled.value && tab === "media" && <MediaTab models={of("predict")} />}
    </>
  );
}

function KeyField(): JSX.Element {
  const [key, setKey] = useState(apiKey());
  return (
    <details class="key" open={key !== ""}>
      <summary>{t("apiKey")}</summary>
      <input
        type="password"
        autocomplete="off"
        aria-label={t("apiKey")}
        value={key}
        onInput={(event) => {
          setKey(event.currentTarget.value);
          keepApiKey(event.currentTarget.value);
        }}
      />
    </details>
  );
}
