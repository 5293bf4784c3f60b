// Asks for a key where the gateway has refused the one that was sent, or that none was.
import type { JSX } from "preact";
import { keepApiKey } from "../lib/api";
import { t } from "../lib/i18n";
import { Panel } from "./parts";

export function KeyForm(props: { done: () => void }): JSX.Element {
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    const key = new FormData(event.currentTarget as HTMLFormElement).get("key");
    if (!key) return;
    keepApiKey(String(key).trim());
    props.done();
  };
  return (
    <Panel title={t("keyWanted")}>
      <form onSubmit={submit}>
        <label>
          {t("keyOfAdmin")}
          <input type="password" name="key" autocomplete="off" required />
        </label>
        <button type="submit">{t("goOn")}</button>
      </form>
      <p class="dim">{t("keyHelp")}</p>
    </Panel>
  );
}
