// The messages of proto/llmos/api as /llmos/v1 shows them; only the fields that are used here.
export type Stats = {
  kernel: string; pid: number; uptime_s: number; opened: number; ended: Record<string, number>;
  redispatched: number; faults: number; queued: number; running: number; ports: number;
};
export type Export = { service: string; keys: string[]; credits: number; running: number };
export type Port = {
  port: number; name: string; pid: number; attached_s: number; exports: Export[]; running: number;
  opened: number; served: number; failed: number; draining: boolean; stalled: boolean;
};
export type Queue = {
  key: string; queued: number; faulting: boolean; oldest_s: number; by_class: number[];
};
export type Service = { service: string; ports: number[]; queues: Queue[] };
export type Limits = {
  tenant: string; weight: number | null; max_calls: number | null; calls_per_s: number | null;
  cost_per_s: number | null;
};
export type Tenant = { limits: Limits; open: number; ended: number; cost: number };
export type Process = {
  name: string; pid: number; state: string; restarts: number; rss_bytes: number; uptime_s: number;
  managed: boolean; last_exit: string;
};
export type System = {
  stats: Stats | null; ports: Port[] | null; services: Service[] | null; tenants: Tenant[] | null;
  processes: Process[] | null; errors: Record<string, { message: string }>;
};
export type Call = {
  id: string; method: string; key: string; call_class: string; tenant: string; caller: string;
  server: number; age_s: number; remaining_s: number; attempt: number;
};
export type Model = {
  name: string; version: number; state: string; reason: string; engine: string; device: string;
  pid: number; granted_bytes: number; used_bytes: number; task: string; context_length: number;
  is_default: boolean; pinned?: boolean;
};
export type Lineage = {
  source: string; parents: string[]; job: string; step: string; datasets: string[]; code: string;
};
export type Version = {
  name: string; version: number; format: string; task: string; architecture: string;
  parameters: number; dtype: string; context_length: number; license: string;
  files: { name: string; sha256: string; size: number }[]; lineage: Lineage | null;
  metrics: { name: string; value: number; unit: string }[]; created_unix_s: number; digest: string;
  size_bytes: number; tags: Record<string, string>; aliases: string[]; signed_by: string[];
};
export type LineageNode = {
  ref: string; depth: number; missing: boolean; lineage: Lineage | null; format: string; dtype: string;
};
export type Alias = { model: string; alias: string; version: number; revision: number };
export type Device = {
  name: string; description: string; total_bytes: number; budget_bytes: number;
  granted_bytes: number; free_bytes: number;
};
export type Grant = {
  id: string; device: string; bytes: number; used_bytes: number; busy: boolean; pinned: boolean;
  idle_s: number;
};
export type Comparison = {
  label: string; ref: string; cosine_min: number; cosine_mean: number; size_bytes: number;
  latency_s: number; texts: number; measures?: { name: string; value: number | null; unit: string }[];
};
export type Training = {
  step: number; steps: number; loss: number | null; validation_loss: number | null;
  learning_rate: number; rate: number; rate_unit: string; eta_s: number; epsilon: number;
};
export type Job = {
  id: string; spec: Record<string, { model?: string } | null> | null; state: string; stage: string;
  progress: number; error: string; results: string[]; comparisons: Comparison[];
  submitted_unix_s: number; ended_unix_s: number; attempts: number; training?: Training | null;
};
export type Entry = {
  seq: number; at_unix_ms: number; actor: string; action: string; subject: string;
  detail_json: string; hash: string;
};
export type News = {
  id: number; topic: string; publisher: string; missed: number;
  payload: { at?: number; [member: string]: unknown } | string;
};

/** A version with what is loaded of it and what points at it. */
export type Row = { ref: string; version: Version; model: Model | null; aliases: Alias[] };
