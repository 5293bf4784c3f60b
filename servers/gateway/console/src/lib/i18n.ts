// Words of the pages. A language has every word of `en`, or it does not compile.
import { en, type Word, type Words } from "./words/en";
import { zh } from "./words/zh";

export type { Word };
export type Language = "en" | "zh";

const LANGUAGES: Record<Language, Words> = { en, zh };
let words: Words = en;

export function preferred(): Language {
  return navigator.language.startsWith("zh") ? "zh" : "en";
}

/** Speak `language` from now on; the caller renders everything again. */
export function speak(language: Language): void {
  words = LANGUAGES[language];
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
}

/** A state as the APIs call it, e.g. `ready`; one that has no word of ours is shown as it is. */
export function stateWord(state: string): string {
  const word = `state_${state}`;
  return word in words ? words[word as Word] : state;
}

/** A word or sentence, with {name} replaced. */
export function t(word: Word, values: Record<string, string | number> = {}): string {
  return words[word].replace(/\{(\w+)\}/g, (_, name: string) => String(values[name] ?? ""));
}
