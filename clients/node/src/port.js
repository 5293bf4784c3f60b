// A process's attachment to the kernel: serve services through it and call others over it.
//
//   const port = new Port('unix:/run/llmos/kernel.sock', 'my-server');
//   port.serve(protos.service('my.package.v1.Thing'), { async Get(request, context) { ... } });
//   await port.start();
//   const reply = await port.client(other).Method({ ... }, { timeoutMs: 1000 });
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';

import { cancelled, now } from './call.js';
import { ClientCall } from './client-call.js';
import { Code, RpcError, unreachable } from './errors.js';
import { hostId } from './host.js';
import { Link } from './link.js';
import { Protos } from './protos.js';

const BACKOFF_MS = [50, 500]; // first and longest
const PATIENCE_MS = 30000; // how long calls wait for a kernel that is away
// Attaching again does not help against these.
const REFUSALS = new Set([
  Code.INVALID_ARGUMENT, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.FAILED_PRECONDITION,
  Code.ALREADY_EXISTS, Code.UNIMPLEMENTED,
]);

/** One attachment. When the kernel dies it attaches, exports and asks again by itself. */
export class Port {
  /**
   * @param {string} address of the kernel: `unix:/path` or `host:port`
   * @param {string} name for people, as in `llmos-ctl kernel ports`
   * @param {{credential?: Buffer, credentials?: import('@grpc/grpc-js').ChannelCredentials}} [options]
   */
  constructor(address, name, { credential, credentials } = {}) {
    this.address = address;
    this.credentials = credentials;
    this.hello = { name, instance: randomUUID().replaceAll('-', ''), pid: process.pid };
    Object.assign(this.hello, { host: hostId(), ...(credential ? { credential } : {}) });
    this.exports = new Map(); // service name -> Export message
    this.served = new Map(); // method path -> { method, handler }
    this.wire = frames();
    this.link = null;
    this.waiting = new Set(); // of those who wait for a link: [resolve, reject]
    this.stopped = null; // why no link will come any more
    this.pause = new AbortController(); // aborted when there is nothing to wait for
  }

  /**
   * Serve a service (as Protos.service gives it). A handler gets the request, or an async iterable of
   * them, and the ServerCall as its context; it returns the reply, or is an async generator of them.
   *
   * @param {Object<string, Function>} handlers by bare method name; what is missing is UNIMPLEMENTED
   * @param {{keys?: string[], credits?: number, faultHandler?: boolean, stallMs?: number}} [options]
   *   as in Export of port.proto
   */
  serve(service, handlers, { keys = [''], credits = 0, faultHandler = false, stallMs = 0 } = {}) {
    for (const [name, method] of Object.entries(service.methods)) {
      const handler = handlers[name]?.bind(handlers);
      if (handler) this.served.set(method.path, { method, handler });
    }
    const declaration = { service: service.name, keys, credits, stall_ms: stallMs };
    Object.assign(declaration, { fault_handler: faultHandler, files: service.files() });
    this.exports.set(service.name, declaration);
  }

  /** Serve other keys; resolves when the kernel has acknowledged them. No keys = withdraw. */
  async setKeys(service, keys) {
    const declaration = { ...this.exports.get(service), keys };
    this.exports.set(service, declaration);
    const { link } = this;
    if (!this.running) return;
    try {
      await link?.export(declaration);
    } catch (error) {
      if (!link.ended) throw error;
    }
    if (!link || link.ended) await this.linked(); // which is after all exports
  }

  /**
   * Attach; resolves when the kernel has acknowledged all exports. Rejects with the kernel's refusal,
   * or UNAVAILABLE KERNEL_UNREACHABLE after `timeoutMs`.
   */
  async start({ timeoutMs = PATIENCE_MS } = {}) {
    this.running = this.keepAttached();
    try {
      await this.linked(now() + timeoutMs);
    } catch (error) {
      this.halt(error);
      throw error;
    }
  }

  /** Take no new calls, let running ones finish for `graceMs`, then detach. */
  async stop(graceMs = 10000) {
    await this.link?.finish(graceMs);
    this.halt(new RpcError(Code.UNAVAILABLE, 'PORT_STOPPED', 'This port was stopped.'));
    await this.running;
  }

  /** Resolves when no link will come any more, with the reason: PORT_STOPPED or a refusal. */
  get closed() {
    return this.running.then(() => this.stopped);
  }

  halt(error) {
    this.stopped ??= error;
    this.pause.abort();
    (this.link ?? this.attempt)?.shut(error);
  }

  async keepAttached() {
    let [delay] = BACKOFF_MS;
    while (!this.stopped) {
      const find = (path) => this.find(path);
      this.attempt = new Link(this.address, this.wire, find, this.credentials);
      const error = await this.stayAttached(this.attempt);
      if (this.link) [delay] = BACKOFF_MS;
      this.link = null;
      this.lastError = error;
      if (REFUSALS.has(error.code)) this.stopped ??= error;
      if (this.stopped) break;
      await sleep(delay * (0.5 + Math.random() / 2), undefined, this.pause).catch(() => {});
      delay = Math.min(delay * 2, BACKOFF_MS[1]);
    }
    for (const [, reject] of this.waiting) reject(this.stopped);
  }

  // From one attempt to attach to the end of the attachment: resolves with what ended it.
  async stayAttached(link) {
    try {
      await link.attach(this.hello);
      await Promise.all([...this.exports.values()].map((one) => link.export(one)));
    } catch (error) {
      link.shut(error);
      return error;
    }
    this.link = link;
    for (const [resolve] of this.waiting) resolve(link);
    return link.closed;
  }

  find(path) {
    const served = this.served.get(path);
    if (served) return served;
    const unserved = () => {
      throw new RpcError(Code.UNIMPLEMENTED, 'NO_SUCH_METHOD', `${path} is not served here.`);
    };
    const method = { path, requestStream: false, requestDeserialize: (bytes) => bytes };
    return { method, handler: unserved };
  }

  /** The attachment, as soon as there is one. */
  async linked(deadline, signal) {
    if (this.link) return this.link;
    if (this.stopped) throw this.stopped;
    if (!this.running) throw new Error('Call start() first.');
    return new Promise((resolve, reject) => {
      const settle = (act) => (value) => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        this.waiting.delete(entry);
        act(value);
      };
      const entry = [settle(resolve), settle(reject)];
      const onAbort = () => entry[1](cancelled());
      const left = Math.min(PATIENCE_MS, (deadline ?? Infinity) - now());
      const giveUp = () => entry[1](unreachable(this.address, this.lastError?.message));
      const timer = setTimeout(giveUp, Math.max(0, left));
      signal?.addEventListener('abort', onAbort);
      this.waiting.add(entry);
      if (signal?.aborted) onAbort();
    });
  }

  /**
   * A client of a service (as Protos.service gives it): one function per method that takes the
   * request, or an (async) iterable of requests, and options, and returns a promise of the reply or
   * an async iterable of replies. Leaving the loop over the replies cancels the call.
   *
   * Options: timeoutMs, signal (AbortSignal), key, callClass (CallClass), metadata (object or pairs),
   * requestId, parent (the ServerCall during whose handling the call is made: it inherits tenant,
   * class, deadline and cancellation), onHeaders and onTrailers (get [key, value] pairs).
   */
  client(service) {
    const functions = {};
    for (const [name, method] of Object.entries(service.methods)) {
      functions[name] = method.responseStream
        ? (request, options = {}) => this.exchange(method, request, options)
        : (request, options = {}) => this.only(method, request, options);
    }
    return functions;
  }

  async only(method, request, options) {
    let reply;
    for await (const message of this.exchange(method, request, options)) reply = message;
    if (reply !== undefined) return reply;
    throw new RpcError(Code.INTERNAL, 'NO_REPLY', `${method.path} ended without its reply.`);
  }

  async *exchange(method, request, options) {
    const { timeoutMs, parent } = options;
    let { signal } = options;
    if (parent) signal = signal ? AbortSignal.any([signal, parent.signal]) : parent.signal;
    const deadline = timeoutMs === undefined ? undefined : now() + timeoutMs;
    let cookie;
    for (;;) {
      const link = await this.linked(deadline, signal);
      if (link.ended) continue; // a moment before the port notices
      const call = new ClientCall(link, method, { ...options, signal, deadline, cookie });
      try {
        if (method.requestStream) void call.sendAll(request);
        else call.sendOnly(method.requestSerialize(request));
        let bytes;
        while ((bytes = await call.inbox.next()) !== undefined) {
          yield method.responseDeserialize(bytes);
        }
        return;
      } catch (error) {
        if (!call.again) throw error;
        cookie = call.resumeLog;
      } finally {
        call.cancel(cancelled());
      }
    }
  }
}

function frames() {
  const protos = new Protos(['llmos/api/kernel/v1/port.proto']);
  const Frame = protos.type('llmos.api.kernel.v1.Frame');
  const Envelope = protos.type('llmos.api.kernel.v1.Envelope');
  return {
    encode: (frame) => Frame.encode(frame).finish(),
    decode: (bytes) => Frame.decode(bytes),
    measure: (envelope) => Envelope.encode(envelope).len,
  };
}
