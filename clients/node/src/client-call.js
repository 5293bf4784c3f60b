// A call that this process opens over its port.
import { Call, cancelled, now } from './call.js';
import { Code, RpcError } from './errors.js';
import { EMPTY, Flag, Kind, fromMetadata, toMetadata } from './wire.js';

/** Whether a method may be run twice without harm, as its proto file says. */
export function isIdempotent(method) {
  return ['IDEMPOTENT', 'NO_SIDE_EFFECTS'].includes(method.options?.idempotency_level);
}

/** A call that this process opens. */
export class ClientCall extends Call {
  /**
   * @param {Object} method as @grpc/proto-loader describes it
   * @param {Object} options see Port.client; `deadline` is in time of performance.now
   */
  constructor(link, method, options) {
    super(link, link.newId());
    this.method = method;
    this.options = options;
    this.cookies = [];
    this.delivered = false; // a reply message, or a piece of one, has come
    this.again = false; // after `lost`: the same call may be made over the next link
    link.calls.set(this.id, this);
    if (options.deadline !== undefined) {
      const late = () => new RpcError(Code.DEADLINE_EXCEEDED, 'DEADLINE', 'The deadline passed.');
      this.arm(options.deadline, () => this.cancel(late()));
    }
    this.onAbort = () => this.cancel(cancelled());
    options.signal?.addEventListener('abort', this.onAbort);
    if (options.signal?.aborted) this.onAbort();
  }

  openEnvelope() {
    const { deadline, parent } = this.options;
    const left = deadline === undefined ? 0 : Math.max(1, Math.round((deadline - now()) * 1000));
    const open = {
      method: this.method.path,
      key: this.options.key ?? '',
      call_class: this.options.callClass ?? 0,
      timeout_us: left,
      parent: parent?.link === this.link ? parent.id : 0,
      metadata: toMetadata(this.options.metadata),
      request_id: this.options.requestId ?? '',
    };
    const cookie = this.options.cookie?.length ? { cookie: this.options.cookie } : {};
    return { kind: Kind.OPEN, call: this.id, open, ...cookie };
  }

  /** Send the only request. */
  sendOnly(message) {
    if (this.ended) return;
    const last = { flags: Flag.HALF_CLOSE };
    this.lane.pushMessage(this.id, message, { first: this.openEnvelope(), last });
  }

  /** Send all requests of an (async) iterable of messages; an error of it cancels the call. */
  async sendAll(messages) {
    // With a route field the kernel finds the key in the first message, so OPEN must have it.
    const waits = this.options.key === undefined && hasRoute(this.method);
    let first = this.openEnvelope();
    try {
      if (this.ended) return;
      if (!waits) {
        this.lane.push({ ...first, flags: 0 });
        first = undefined;
      }
      for await (const message of messages) {
        if (this.ended) return;
        this.lane.pushMessage(this.id, this.method.requestSerialize(message), { first });
        first = undefined;
        await this.lane.room();
      }
      if (this.ended) return;
      const head = first ?? { kind: Kind.DATA, call: this.id };
      this.lane.push({ ...head, flags: Flag.HALF_CLOSE });
    } catch (thrown) {
      this.cancel(thrown); // to the caller, who gave the iterable
    }
  }

  receive(envelope) {
    try {
      super.receive(envelope);
    } catch (error) {
      this.cancel(error);
      return;
    }
    if (envelope.flags & Flag.MESSAGE) this.delivered = true;
    if (envelope.cookie.length) this.cookies.push(Buffer.from(envelope.cookie));
    if (envelope.kind === Kind.HEADERS) {
      this.options.onHeaders?.(fromMetadata(envelope.headers?.metadata));
    } else if (envelope.kind === Kind.END) {
      const { code = 0, message = '', trailers = [] } = envelope.status ?? {};
      const metadata = fromMetadata(trailers);
      this.options.onTrailers?.(metadata);
      this.finish();
      this.inbox.close(code === 0 ? null : RpcError.fromWire(code, message, metadata));
    }
  }

  finish() {
    this.close();
    this.options.signal?.removeEventListener('abort', this.onAbort);
  }

  /** Give up: whoever waits for replies gets `error`. Does nothing to a call that has ended. */
  cancel(error) {
    if (this.ended) return;
    this.finish();
    if (this.lane.sent) this.lane.push({ kind: Kind.CANCEL, call: this.id });
    this.inbox.abort(error);
  }

  /** The link is gone. What has arrived is still handed out before the error. */
  lost() {
    if (this.ended) return;
    const unsent = !this.lane.sent;
    const harmless = unsent || isIdempotent(this.method);
    this.finish();
    const error = new RpcError(
      Code.UNAVAILABLE,
      harmless ? 'KERNEL_LOST' : 'KERNEL_LOST_MAY_HAVE_RUN',
      harmless
        ? 'The kernel went away; the call may be made again.'
        : 'The kernel went away; the call may or may not have run: look before you repeat it.',
    );
    this.again = harmless && !this.method.requestStream && (unsent || this.resumable());
    this.inbox.close(error);
  }

  // Without a resume log, a stream that has begun cannot go on elsewhere.
  resumable() {
    return !this.delivered || this.cookies.length > 0;
  }

  /** The stream's resume log so far: from the call before and from this one. */
  get resumeLog() {
    return Buffer.concat([this.options.cookie ?? EMPTY, ...this.cookies]);
  }
}

function hasRoute(method) {
  return Object.keys(method.options ?? {}).some((key) => key.includes('llmos.api.kernel.v1.route'));
}
