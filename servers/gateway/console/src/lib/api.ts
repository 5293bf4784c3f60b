// Calls of the gateway: JSON, server-sent events, and streamed chats. Only its public APIs.

import { t } from "./i18n";

/** An error with the cause and the cure as the OS says them. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

type ErrorBody = { error?: { message?: string; code?: string } };
export const KEY_WANTED = "llmos-key-wanted";

/** Reads what went wrong; when the OS itself refuses the key, the page is told (KEY_WANTED). */
async function failure(response: Response, sent: string): Promise<ApiError> {
  const text = await response.text();
  try {
    const said = (JSON.parse(text) as ErrorBody).error;
    const refused = response.status === 401 || said?.code === "not_admin";
    const steering = new URL(response.url).pathname.startsWith(BASE);
    if (refused && steering && sent === apiKey()) dispatchEvent(new Event(KEY_WANTED));
    if (said?.message) return new ApiError(said.message, response.status);
  } catch {
    // Not ours: what a proxy says is shown as it is.
  }
  return new ApiError(text.slice(0, 300) || `HTTP ${response.status}`, response.status);
}

/** fetch, but a gateway that does not answer is said in words of ours. */
async function reached(url: string, init?: RequestInit): Promise<Response> {
  try {
    return await fetch(url, init);
  } catch (cause) {
    throw cause instanceof TypeError ? new ApiError(t("gatewayGone"), 0) : cause;
  }
}

async function json<T>(url: string, init?: RequestInit): Promise<T> {
  const sent = apiKey();
  const response = await reached(url, init);
  if (!response.ok) throw await failure(response, sent);
  return (await response.json()) as T;
}

const BASE = "/llmos/v1";
const JSON_HEADERS = { "content-type": "application/json" };
const KEY = "llmos.key";

/** The API key that people gave, if the gateway wants one; it is forgotten with the tab. */
export const apiKey = (): string => sessionStorage.getItem(KEY) ?? "";
export const keepApiKey = (key: string): void => sessionStorage.setItem(KEY, key);

function keyed(headers: Record<string, string> = JSON_HEADERS): Record<string, string> {
  const key = apiKey();
  return key ? { ...headers, authorization: `Bearer ${key}` } : headers;
}

export function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return json<T>(BASE + path, { headers: keyed({}), signal: signal ?? null });
}

export function post<T>(path: string, members: object = {}): Promise<T> {
  return json<T>(BASE + path, {
    method: "POST",
    headers: keyed(),
    body: JSON.stringify(members),
  });
}

/** Calls the OpenAI API of the gateway. */
export function openai<T>(path: string, members: object): Promise<T> {
  return json<T>(`/v1${path}`, {
    method: "POST",
    headers: keyed(),
    body: JSON.stringify(members),
  });
}

/** Asks what a model takes and says, by the Open Inference Protocol; loads it when it is not. */
export function tensors(ref: string): Promise<{ outputs: { name: string }[] }> {
  const [name, version] = ref.split("@");
  return json(`/v2/models/${name}/versions/${version}`, { headers: keyed({}) });
}

export async function metricsText(signal?: AbortSignal): Promise<string> {
  const sent = apiKey();
  const response = await reached("/metrics", { signal: signal ?? null });
  if (!response.ok) throw await failure(response, sent);
  return response.text();
}

type Event = { name: string; data: string };

/** Yields the events of a stream until it ends; aborting `signal` ends it, too. */
async function* events(response: Response): AsyncGenerator<Event> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((cause: unknown) => {
      throw cause instanceof TypeError ? new ApiError(t("streamBroke"), response.status) : cause;
    });
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      let name = "message";
      const data: string[] = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        if (line.startsWith("data: ")) data.push(line.slice(6));
      }
      if (data.length) yield { name, data: data.join("\n") };
    }
  }
}

/** Yields the values of a feed of /llmos/v1. Throws ApiError when it ends with one. */
export async function* feed<T>(path: string, signal: AbortSignal): AsyncGenerator<T> {
  const sent = apiKey();
  const response = await reached(BASE + path, { headers: keyed({}), signal });
  if (!response.ok) throw await failure(response, sent);
  for await (const event of events(response)) {
    if (event.name === "end") return;
    const value = JSON.parse(event.data) as T & ErrorBody;
    if (event.name === "error") throw new ApiError(value.error?.message ?? "", response.status);
    yield value as Awaited<T>;
  }
}

export type Usage = { prompt_tokens: number; completion_tokens: number };
export type Piece = { text: string; finish: string | null; usage: Usage | null; model: string };
type Chunk = ErrorBody & {
  model: string;
  usage?: Usage | null;
  choices: { delta: { content?: string }; finish_reason: string | null }[];
};

/** Yields the pieces of a streamed chat answer. Throws ApiError. */
export async function* chat(request: object, signal: AbortSignal): AsyncGenerator<Piece> {
  const sent = apiKey();
  const response = await reached("/v1/chat/completions", {
    method: "POST",
    headers: keyed(),
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await failure(response, sent);
  for await (const event of events(response)) {
    if (event.data === "[DONE]") return;
    const chunk = JSON.parse(event.data) as Chunk;
    if (chunk.error) throw new ApiError(chunk.error.message ?? "", response.status);
    const choice = chunk.choices[0];
    yield {
      text: choice?.delta.content ?? "",
      finish: choice?.finish_reason ?? null,
      usage: chunk.usage ?? null,
      model: chunk.model,
    };
  }
  throw new ApiError(t("streamBroke"), response.status);
}
