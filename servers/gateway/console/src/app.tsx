// The frame around the pages: navigation, theme, language, and what all pages share.
import type { ComponentType, JSX } from "preact";
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { KEY_WANTED } from "./lib/api";
import { useFeed, useKept } from "./lib/hooks";
import { preferred, speak, t, type Language, type Word } from "./lib/i18n";
import { LiveContext, useLiveSource } from "./lib/system";
import type { News } from "./lib/types";
import { JobsPage } from "./pages/jobs";
import { LogsPage } from "./pages/logs";
import { MemoryPage } from "./pages/memory";
import { ModelsPage } from "./pages/models";
import { PlaygroundPage } from "./pages/playground";
import { QueuesPage } from "./pages/queues";
import { SystemPage } from "./pages/system";
import { Actions } from "./ui/actions";
import { Boundary } from "./ui/boundary";
import { KeyForm } from "./ui/keyform";
import { Trouble } from "./ui/parts";

const PAGES: [Word, ComponentType<{ rest: string }>][] = [
  ["system", SystemPage],
  ["models", ModelsPage],
  ["playground", PlaygroundPage],
  ["queues", QueuesPage],
  ["memory", MemoryPage],
  ["jobs", JobsPage],
  ["logs", LogsPage],
];
const NEWS_KEPT = 200;
type Theme = "auto" | "light" | "dark";

/** The page and what comes after it in the address: `#models/smollm2@1`. */
function usePlace(): [Word, string] {
  const read = (): [Word, string] => {
    const [name = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/");
    const page = PAGES.find(([word]) => word === name)?.[0] ?? "system";
    return [page, decoded(rest.join("/"))];
  };
  const [place, setPlace] = useState(read);
  // Not useEffect: it waits for a frame, and a place that is chosen before that would be missed.
  useLayoutEffect(() => {
    const moved = (): void => setPlace(read());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  return place;
}

/** An address that somebody typed may have a lone %. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function useTheme(): [Theme, (theme: Theme) => void] {
  const [theme, setTheme] = useKept<Theme>("theme", "auto");
  const [dark, setDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const changed = (): void => setDark(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  document.documentElement.dataset.theme = theme === "auto" ? (dark ? "dark" : "light") : theme;
  return [theme, setTheme];
}

function useNumberKeys(): void {
  useEffect(() => {
    const pressed = (event: KeyboardEvent): void => {
      const typing = event.target instanceof HTMLElement && event.target.closest("input, textarea, select, dialog");
      const page = PAGES[Number(event.key) - 1];
      if (typing || event.ctrlKey || event.metaKey || event.altKey || !page) return;
      location.hash = page[0];
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

/** Whether the gateway has refused the key, and what to call when there is another. */
function useKeyWanted(): [boolean, () => void] {
  const [wanted, setWanted] = useState(false);
  useEffect(() => {
    const refused = (): void => setWanted(true);
    addEventListener(KEY_WANTED, refused);
    return () => removeEventListener(KEY_WANTED, refused);
  }, []);
  return [wanted, () => setWanted(false)];
}

export function App(): JSX.Element {
  const [language, setLanguage] = useKept<Language>("language", preferred());
  speak(language);
  const [theme, setTheme] = useTheme();
  const [page, rest] = usePlace();
  const [news, setNews] = useState<News[]>([]);
  const live = useLiveSource(news);
  useFeed<News>("/events?patterns=*", (item) => setNews((old) => [item, ...old].slice(0, NEWS_KEPT)));
  useNumberKeys();
  const [keyWanted, keyGiven] = useKeyWanted();
  const given = (): void => {
    keyGiven();
    live.again();
  };
  const Page = PAGES.find(([word]) => word === page)![1];
  useEffect(() => {
    document.title = `${t(page)} · LLM OS`;
  }, [page, language]);
  return (
    <LiveContext.Provider value={live}>
      <Actions key={language}>
        <a class="skip" href="#content" onClick={(event) => toContent(event)}>
          {t("skip")}
        </a>
        <nav aria-label={t("pages")} title={t("keys")}>
          <strong>LLM OS</strong>
          {PAGES.map(([word]) => (
            <a key={word} href={`#${word}`} aria-current={word === page ? "page" : undefined}>
              {t(word)}
            </a>
          ))}
          <span class="grow" />
          <select
            aria-label={t("theme")}
            value={theme}
            onChange={(event) => setTheme(event.currentTarget.value as Theme)}
          >
            <option value="auto">{t("themeAuto")}</option>
            <option value="light">{t("themeLight")}</option>
            <option value="dark">{t("themeDark")}</option>
          </select>
          <select
            aria-label={t("language")}
            value={language}
            onChange={(event) => setLanguage(event.currentTarget.value as Language)}
          >
            <option value="en">English</option>
            <option value="zh">中文</option>
          </select>
        </nav>
        <main id="content" tabIndex={-1}>
          <h1>{t(page)}</h1>
          <Trouble error={live.error} whole />
          <Boundary place={`${page}/${rest}`}>{keyWanted ? <KeyForm done={given} /> : <Page rest={rest} />}</Boundary>
        </main>
      </Actions>
    </LiveContext.Provider>
  );
}

function toContent(event: MouseEvent): void {
  event.preventDefault(); // the part after # names a page
  document.getElementById("content")?.focus();
}
