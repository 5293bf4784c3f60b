// What a job says of itself, in words.
import { duration } from "./format";
import type { Job } from "./types";

/** Its kind, and the model that it begins with. */
export function kindOf(job: Job): [string, string] {
  const found = Object.entries(job.spec ?? {}).find(([, settings]) => settings !== null && typeof settings === "object");
  return [(found?.[0] ?? "").replaceAll("_", "-"), found?.[1]?.model ?? ""];
}

/** How long it has run, or ran. */
export function took(job: Job): string {
  const end = job.ended_unix_s || Date.now() / 1000;
  return duration(Math.max(0, end - job.submitted_unix_s));
}
