// A call that this process serves over its port.
import { Call, now } from './call.js';
import { Code, RpcError } from './errors.js';
import { Flag, Kind, fromMetadata, toMetadata } from './wire.js';

/** A call that this process serves; handlers get it as their context. */
export class ServerCall extends Call {
  /**
   * @param {Object} opening the OPEN envelope
   * @param {{method: Object, handler: Function}} served method as @grpc/proto-loader describes it
   */
  constructor(link, opening, { method, handler }) {
    super(link, Number(opening.call));
    const { open } = opening;
    this.method = method;
    this.handler = handler;
    /** What the service is sharded by; empty for keyless calls. */
    this.key = open.key;
    /** [key, value] pairs, as fromMetadata. */
    this.metadata = fromMetadata(open.metadata);
    this.tenant = open.tenant;
    this.caller = open.caller;
    this.callerHost = open.caller_host;
    /** Servers tried before. */
    this.attempt = open.attempt;
    /** The call's id in logs and in Admin. */
    this.trace = open.trace;
    this.callClass = open.call_class;
    /** What earlier servers of this stream appended to its resume log. */
    this.resumeLog = Buffer.from(opening.cookie);
    /** Trailing metadata to send: an object or [key, value] pairs. */
    this.trailers = {};
    this.cookies = [];
    this.aborter = new AbortController();
    /** Aborted when the client gave up, the deadline passed or the kernel went away. */
    this.signal = this.aborter.signal;
    const timeout = Number(open.timeout_us) / 1000;
    if (timeout > 0) {
      this.deadline = now() + timeout;
      this.arm(this.deadline, () => this.stop(Code.DEADLINE_EXCEEDED, 'The deadline passed.'));
    }
    link.calls.set(this.id, this);
  }

  /** Milliseconds to the deadline; undefined when there is none. */
  get remainingMs() {
    return this.deadline === undefined ? undefined : Math.max(0, this.deadline - now());
  }

  /** Send initial metadata, before the first reply. */
  sendHeaders(metadata) {
    const headers = { metadata: toMetadata(metadata) };
    this.lane.push({ kind: Kind.HEADERS, call: this.id, headers });
  }

  /**
   * Append to the stream's resume log together with the NEXT message that the handler yields. If this
   * server dies after it, the next one finds all that was appended in `resumeLog` and goes on there.
   */
  appendResumeLog(bytes) {
    this.cookies.push(Buffer.from(bytes));
  }

  receive(envelope) {
    if (envelope.kind === Kind.CANCEL) {
      this.stop(Code.CANCELLED, 'The client gave up.');
      return;
    }
    try {
      super.receive(envelope);
    } catch (error) {
      this.stop(error.code, error.message, error.reason);
      return;
    }
    if (envelope.flags & Flag.HALF_CLOSE) this.inbox.close();
  }

  /** Run the handler and answer; never rejects. */
  async run() {
    try {
      const request = this.method.requestStream ? this.requests() : await this.request();
      if (this.method.responseStream) {
        for await (const reply of this.handler(request, this)) {
          if (this.stopped) throw this.stopped;
          this.reply(reply);
          await this.lane.room();
        }
        this.end();
      } else {
        const reply = await this.handler(request, this);
        if (this.stopped) throw this.stopped;
        this.end(this.method.responseSerialize(reply));
      }
    } catch (thrown) {
      this.fail(this.stopped ?? RpcError.fromThrown(thrown));
    }
  }

  async request() {
    const bytes = await this.inbox.next();
    if (bytes === undefined) {
      throw new RpcError(Code.INVALID_ARGUMENT, 'NO_REQUEST', 'The call ended without a request.');
    }
    return this.decode(bytes);
  }

  async *requests() {
    let bytes;
    while ((bytes = await this.inbox.next()) !== undefined) yield this.decode(bytes);
  }

  decode(bytes) {
    try {
      return this.method.requestDeserialize(bytes);
    } catch (error) {
      const message = `The request is not a ${this.method.requestType.type.name} (${error.message}).`;
      throw new RpcError(Code.INVALID_ARGUMENT, 'BAD_MESSAGE', message);
    }
  }

  reply(message) {
    const last = this.cookies.length ? { cookie: Buffer.concat(this.cookies) } : {};
    this.cookies = [];
    this.lane.pushMessage(this.id, this.method.responseSerialize(message), { last });
  }

  end(message) {
    const trailers = toMetadata(this.trailers);
    const end = { kind: Kind.END, ...(trailers.length ? { status: { code: 0, trailers } } : {}) };
    if (message) this.lane.pushMessage(this.id, message, { last: end });
    else this.lane.push({ ...end, call: this.id });
    this.finish();
  }

  fail(error) {
    if (this.ended) return;
    const { code, message, trailers } = error.toWire();
    const all = [...toMetadata(this.trailers), ...toMetadata(trailers)];
    this.lane.push({ kind: Kind.END, call: this.id, status: { code, message, trailers: all } });
    this.finish();
  }

  // END is queued, but a large reply before it still needs the client's grants.
  finish() {
    this.ended = true;
    this.inbox.close();
    this.lane.whenEmpty(() => this.close());
  }

  stop(code, message, reason = Code[code]) {
    if (this.stopped) return;
    this.stopped = new RpcError(code, reason, message);
    this.inbox.abort(this.stopped);
    this.lane.clear(); // nobody reads it any more
    this.aborter.abort(this.stopped);
    if (!this.ended) return; // `run` ends the call when the work has stopped
    this.ended = false;
    this.fail(this.stopped);
  }

  /** The link is gone: the work stops, nobody hears its answer. */
  lost() {
    this.stop(Code.CANCELLED, 'The kernel went away.');
    this.close();
  }
}
