// Doing things: a question first where it hurts, and a word about how it went.
import { createContext, type ComponentChildren, type JSX } from "preact";
import { useCallback, useContext, useEffect, useRef, useState } from "preact/hooks";
import { t } from "../lib/i18n";

export type Deed = {
  /** What the button of the question says. */
  verb: string;
  /** What to ask first; without it nothing is asked. */
  ask?: string;
  why?: string;
  /** More to fill in below the question. */
  fields?: ComponentChildren;
  /** Does it and returns what to say. */
  run: () => Promise<string>;
};

type Doing = (deed: Deed) => void;
const DoContext = createContext<Doing>(() => {});

/** What starts a deed from a page. */
export const useDo = (): Doing => useContext(DoContext);

const SHOWN_MS = 6000;

export function Actions(props: { children: ComponentChildren }): JSX.Element {
  const [asked, setAsked] = useState<Deed | null>(null);
  const [said, setSaid] = useState<{ text: string; bad: boolean } | null>(null);
  useEffect(() => {
    if (!said || said.bad) return;
    const timer = setTimeout(() => setSaid(null), SHOWN_MS);
    return () => clearTimeout(timer);
  }, [said]);
  const run = useCallback(async (deed: Deed) => {
    setAsked(null);
    try {
      setSaid({ text: await deed.run(), bad: false });
    } catch (cause) {
      setSaid({ text: cause instanceof Error ? cause.message : String(cause), bad: true });
    }
  }, []);
  const start = useCallback(
    (deed: Deed) => {
      if (deed.ask) setAsked(deed);
      else void run(deed);
    },
    [run],
  );
  return (
    <DoContext.Provider value={start}>
      {props.children}
      {asked && <Question deed={asked} yes={() => void run(asked)} no={() => setAsked(null)} />}
      <div class="toast-place" role="status" aria-live="polite">
        {said && (
          <p class={said.bad ? "toast bad" : "toast"}>
            {said.text}
            <button class="plain" onClick={() => setSaid(null)} aria-label={t("close")}>
              ×
            </button>
          </p>
        )}
      </div>
    </DoContext.Provider>
  );
}

function Question(props: { deed: Deed; yes: () => void; no: () => void }): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  const { deed } = props;
  return (
    <dialog ref={dialog} onClose={props.no} aria-labelledby="question">
      <form
        method="dialog"
        onSubmit={(event) => {
          event.preventDefault();
          props.yes();
        }}
      >
        <h2 id="question">{deed.ask}</h2>
        {deed.why && <p>{deed.why}</p>}
        {deed.fields}
        <footer>
          <button type="button" onClick={props.no}>
            {t("cancel")}
          </button>
          <button type="submit" class="strong">
            {deed.verb}
          </button>
        </footer>
      </form>
    </dialog>
  );
}

/** A button that starts a deed and waits for its end. */
export function DoButton(props: { deed: () => Deed; children: ComponentChildren; off?: boolean }): JSX.Element {
  const [busy, setBusy] = useState(false);
  const start = useDo();
  const click = (): void => {
    const deed = props.deed();
    const run = async (): Promise<string> => {
      setBusy(true);
      try {
        return await deed.run();
      } finally {
        setBusy(false);
      }
    };
    start({ ...deed, run });
  };
  return (
    <button class="small" onClick={click} disabled={busy || (props.off ?? false)} aria-busy={busy}>
      {props.children}
    </button>
  );
}
