// The error vocabulary: gRPC status with a machine-readable reason (google.rpc.ErrorInfo), both ways.
import { status as Code } from '@grpc/grpc-js';
import protobuf from 'protobufjs';

export { Code };

const DETAILS = 'grpc-status-details-bin';
const RETRY_AFTER_MS = 'retry-after-ms';
const ERROR_INFO = 'type.googleapis.com/google.rpc.ErrorInfo';

const { root } = protobuf.parse(
  `syntax = "proto3";
   message Any { string type_url = 1; bytes value = 2; }
   message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
   message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }`,
  { keepCase: true },
);
const Status = root.lookupType('Status');
const ErrorInfo = root.lookupType('ErrorInfo');

/** An error of LLM OS: gRPC status `code`, UPPER_SNAKE `reason`, one sentence in `message`. */
export class RpcError extends Error {
  /**
   * @param {number} code gRPC status code, 1 to 16
   * @param {string} reason as in the comments of the proto files, e.g. NO_SUCH_MODEL
   * @param {string} message cause and cure
   * @param {{details?: Object<string, string>, retryAfterMs?: number}} [more]
   */
  constructor(code, reason, message, { details = {}, retryAfterMs } = {}) {
    super(message);
    this.name = 'RpcError';
    this.code = code;
    this.reason = reason;
    this.details = details;
    this.retryAfterMs = retryAfterMs;
  }

  /** Name of the status code, e.g. NOT_FOUND. */
  get codeName() {
    return Code[this.code] ?? `CODE_${this.code}`;
  }

  toString() {
    return `${this.codeName} ${this.reason}: ${this.message}`;
  }

  /** What travels: code, message and trailing metadata as [key, string or Buffer] pairs. */
  toWire() {
    const info = { reason: this.reason, domain: 'llmos', metadata: this.details };
    const value = ErrorInfo.encode(info).finish();
    const detail = { type_url: ERROR_INFO, value };
    const packed = Status.encode({ code: this.code, message: this.message, details: [detail] });
    const trailers = [[DETAILS, Buffer.from(packed.finish())]];
    if (this.retryAfterMs !== undefined) {
      trailers.push([RETRY_AFTER_MS, String(Math.round(this.retryAfterMs))]);
    }
    return { code: this.code, message: this.message, trailers };
  }

  /** The error that a status with its trailing metadata stands for. */
  static fromWire(code, message, trailers = []) {
    let info = null;
    let retryAfterMs;
    for (const [key, value] of trailers) {
      if (key === DETAILS) info = readInfo(value) ?? info;
      if (key === RETRY_AFTER_MS && /^\d+$/.test(String(value))) retryAfterMs = Number(value);
    }
    const reason = info?.reason || (Code[code] ?? 'UNKNOWN');
    return new RpcError(code, reason, message, { details: info?.metadata ?? {}, retryAfterMs });
  }

  /** The same for an error of a plain @grpc/grpc-js call. */
  static fromGrpc(error) {
    if (error instanceof RpcError || typeof error.code !== 'number') return error;
    const entries = [DETAILS, RETRY_AFTER_MS].flatMap((key) =>
      (error.metadata?.get(key) ?? []).map((value) => [key, value]),
    );
    return RpcError.fromWire(error.code, error.details ?? error.message, entries);
  }

  /** What a handler threw, as an error that may leave the process. */
  static fromThrown(thrown) {
    if (thrown instanceof RpcError) return thrown;
    if (typeof thrown?.code === 'number' && thrown.metadata) return RpcError.fromGrpc(thrown);
    console.error('unexpected error in a handler:', thrown);
    const kind = thrown?.constructor?.name ?? typeof thrown;
    return new RpcError(Code.INTERNAL, 'BUG', `Internal error (${kind}); see the server's log.`);
  }
}

/** The error of a kernel that cannot be reached; `cause` is what the connection said, if anything. */
export function unreachable(address, cause) {
  const why = cause ? ` (${cause.replace(/[. ]*(Resolution note:.*)?$/s, '')})` : '';
  const message = `No kernel answers at ${address}${why}; is LLM OS running?`;
  return new RpcError(Code.UNAVAILABLE, 'KERNEL_UNREACHABLE', message);
}

function readInfo(packed) {
  try {
    const any = Status.decode(packed).details.find((detail) => detail.type_url === ERROR_INFO);
    return any ? ErrorInfo.toObject(ErrorInfo.decode(any.value), { objects: true }) : null;
  } catch {
    return null; // a foreign server may send anything here; code and message still stand
  }
}
