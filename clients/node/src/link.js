// One attachment to the kernel, from HELLO to the end of the stream: owns the stream and its calls.
import { setTimeout as sleep } from 'node:timers/promises';

import grpc from '@grpc/grpc-js';

import { Code, RpcError } from './errors.js';
import { Outbox } from './outbox.js';
import { ServerCall } from './server-call.js';
import { Kind, fromMetadata } from './wire.js';

const ATTACH = '/llmos.api.kernel.v1.Port/Attach';
const PROTOCOL = 1;
const CHANNEL = {
  'grpc.use_local_subchannel_pool': 1, // a new attempt connects anew; the port does the back-off
  'grpc.max_receive_message_length': -1,
  'grpc.keepalive_time_ms': 20000,
  'grpc.keepalive_timeout_ms': 10000,
};

/** An attachment. `closed` resolves with the error that ended it. */
export class Link {
  /**
   * @param {Object} wire encode and decode of Frame, and measure of Envelope
   * @param {(opening: Object) => {method: Object, handler: Function}} find what serves an OPEN
   */
  constructor(address, wire, find, credentials = grpc.credentials.createInsecure()) {
    this.find = find;
    this.calls = new Map(); // id -> Call
    this.requests = new Map(); // id of EXPORT -> [resolve, reject]
    this.nextId = 1;
    this.window = 0;
    this.draining = null; // resolved by the kernel's DRAIN
    this.client = new grpc.Client(address, credentials, CHANNEL);
    this.stream = this.client.makeBidiStreamRequest(ATTACH, wire.encode, wire.decode);
    this.outbox = new Outbox((frame, done) => this.stream.write(frame, done), wire.measure);
    this.welcome = new Promise((resolve, reject) => (this.onWelcome = [resolve, reject]));
    this.closed = new Promise((resolve) => (this.onClosed = resolve));
    this.stream.on('data', (frame) => this.receive(frame));
    this.stream.on('error', (error) => this.shut(RpcError.fromGrpc(error)));
    this.stream.on('end', () =>
      this.shut(new RpcError(Code.UNAVAILABLE, 'KERNEL_GONE', 'The kernel ended the attachment.')),
    );
  }

  /** Say who attaches; resolves with Welcome, rejects when the kernel refuses or is not there. */
  async attach(hello) {
    this.outbox.send({ kind: Kind.HELLO, hello: { protocol: PROTOCOL, ...hello } });
    const welcome = await this.welcome;
    this.outbox.maxFrame = welcome.max_frame_bytes;
    this.window = welcome.initial_window;
    return welcome;
  }

  /** An id for what this side opens: odd, never used before. */
  newId() {
    const id = this.nextId;
    this.nextId += 2;
    return id;
  }

  /** Declare a service; resolves when the kernel has acknowledged it, rejects when it refuses. */
  export(declaration) {
    const call = this.newId();
    return new Promise((resolve, reject) => {
      this.requests.set(call, [resolve, reject]);
      this.outbox.send({ kind: Kind.EXPORT, call, export: declaration });
    });
  }

  /** Ask for no new calls; resolves when the kernel will send none. */
  drain() {
    return new Promise((resolve) => {
      this.draining = resolve;
      this.outbox.send({ kind: Kind.DRAIN });
    });
  }

  receive(frame) {
    try {
      for (const envelope of frame.envelopes) this.dispatch(envelope);
    } catch (error) {
      // What no call can answer for is a broken stream: start over rather than guess.
      this.shut(RpcError.fromThrown(error));
    }
  }

  dispatch(envelope) {
    const id = Number(envelope.call);
    switch (envelope.kind) {
      case Kind.WELCOME:
        this.onWelcome[0](envelope.welcome);
        break;
      case Kind.EXPORTED:
        this.exported(id, envelope.status);
        break;
      case Kind.DRAIN:
        this.draining?.();
        break;
      case Kind.OPEN:
        this.open(envelope);
        break;
      default:
        // Unknown ids are of calls that ended here while the envelope was on its way.
        this.calls.get(id)?.receive(envelope);
    }
  }

  exported(id, status) {
    const [resolve, reject] = this.requests.get(id) ?? [];
    this.requests.delete(id);
    if (!status?.code) resolve?.();
    else reject?.(RpcError.fromWire(status.code, status.message, fromMetadata(status.trailers)));
  }

  open(envelope) {
    const id = Number(envelope.call);
    if (id % 2 !== 0 || !envelope.open) {
      throw new RpcError(Code.INTERNAL, 'BAD_FRAME', `The kernel opened call ${id} wrongly.`);
    }
    const call = new ServerCall(this, envelope, this.find(envelope.open.method));
    call.receive(envelope);
    void call.run();
  }

  /** Take no new calls, let those served here finish for `graceMs`, and end the attachment. */
  async finish(graceMs) {
    const end = performance.now() + graceMs;
    let drained = false;
    void this.drain().then(() => (drained = true));
    const serving = () => [...this.calls.values()].some((call) => call instanceof ServerCall);
    const busy = () => !drained || serving() || !this.outbox.idle();
    while (busy() && !this.ended && performance.now() < end) await sleep(5);
    if (this.ended) return;
    this.stream.end();
    const timer = new AbortController();
    await Promise.race([this.closed, sleep(1000, undefined, timer).catch(() => {})]);
    timer.abort();
  }

  /** End the attachment: all its calls fail with it. */
  shut(error) {
    if (this.ended) return;
    this.ended = true;
    this.outbox.close();
    this.onWelcome[1](error);
    this.welcome.catch(() => {}); // nobody waits for it after attach
    for (const [, reject] of this.requests.values()) reject(error);
    this.requests.clear();
    this.draining?.();
    for (const call of [...this.calls.values()]) call.lost();
    this.stream.cancel();
    this.client.close();
    this.onClosed(error);
  }
}
