// The sending half of a port: every call has a lane under its window, and the outbox puts what is
// queued into frames. Pure: no gRPC, no timers.
import { Code, RpcError } from './errors.js';
import { Flag, Kind, PIECE, pieces } from './wire.js';

const ENVELOPE_OVERHEAD = 48; // bytes that the flat fields of an envelope can take, generously

/** One direction of a call as its sender sees it: a queue of envelopes under a window. */
export class Lane {
  constructor(outbox, window) {
    this.outbox = outbox;
    this.window = window;
    this.credit = window;
    this.pieceBytes = Math.max(1, Math.min(PIECE, Math.floor(window / 2)));
    this.queue = [];
    this.queuedBytes = 0;
    this.sent = false; // something of this call has left
    this.waiting = null;
    this.onEmpty = null;
  }

  /** Queue envelopes of one call, in order. */
  push(envelope) {
    this.outbox.check(envelope);
    this.queue.push(envelope);
    this.queuedBytes += envelope.payload?.length ?? 0;
    this.outbox.offer(this);
  }

  /** Queue a message: the envelope of its first piece has the fields `first`, of its last `last`. */
  pushMessage(call, message, { first = {}, last = {} } = {}) {
    let fields = { kind: Kind.DATA, ...first };
    for (const [payload, more] of pieces(message, this.pieceBytes)) {
      const flags = Flag.MESSAGE | (more ? Flag.MORE : (last.flags ?? 0));
      this.push({ ...fields, ...(more ? {} : last), call, payload, flags });
      fields = { kind: Kind.DATA };
    }
  }

  fits() {
    return this.queue.length > 0 && (this.queue[0].payload?.length ?? 0) <= this.credit;
  }

  take() {
    const envelope = this.queue.shift();
    const bytes = envelope.payload?.length ?? 0;
    this.credit -= bytes;
    this.queuedBytes -= bytes;
    this.sent = true;
    if (this.queuedBytes <= this.window) this.wake();
    if (this.queue.length === 0) this.onEmpty?.();
    return envelope;
  }

  wake() {
    this.waiting?.();
    this.waiting = null;
  }

  /** The receiver took `bytes` more. */
  grant(bytes) {
    this.credit += bytes;
    this.outbox.offer(this);
  }

  /** Wait until less than a window is queued: the writer's side of the back-pressure. */
  async room() {
    while (this.queuedBytes > this.window) {
      await new Promise((resolve) => (this.waiting = resolve));
    }
  }

  /** Call `act` when the last queued envelope has left. */
  whenEmpty(act) {
    this.onEmpty = act;
    if (this.queue.length === 0) act();
  }

  /** Forget what is queued. */
  clear() {
    this.queue = [];
    this.queuedBytes = 0;
    this.onEmpty = null;
    this.wake();
  }
}

/**
 * All that one port sends. While a write is in flight, envelopes gather and leave as the next frame;
 * calls take turns, so that a large message never stands before small ones of other calls.
 */
export class Outbox {
  /**
   * @param {(frame: {envelopes: Object[]}, done: () => void) => void} write
   * @param {(envelope: Object) => number} measure encoded size of an envelope
   */
  constructor(write, measure) {
    this.write = write;
    this.measure = measure;
    this.maxFrame = PIECE + 4096; // before WELCOME only HELLO is sent
    this.urgent = [];
    this.turns = new Set(); // lanes with something that fits their window, in turn order
    this.scheduled = false;
    this.writing = false;
    this.closed = false;
  }

  check(envelope) {
    const bytes = this.size(envelope);
    if (bytes > this.maxFrame) {
      throw new RpcError(
        Code.RESOURCE_EXHAUSTED,
        'FRAME_TOO_LARGE',
        `An envelope of ${bytes} bytes exceeds the kernel's ${this.maxFrame}; send less metadata.`,
      );
    }
  }

  size(envelope) {
    const nested = envelope.open ?? envelope.status ?? envelope.headers ?? envelope.export;
    if (nested) return this.measure(envelope) + 8;
    return (envelope.payload?.length ?? 0) + (envelope.cookie?.length ?? 0) + ENVELOPE_OVERHEAD;
  }

  /** Queue an envelope that belongs to no lane: about the port, or WINDOW. */
  send(envelope) {
    this.check(envelope);
    this.urgent.push(envelope);
    this.schedule();
  }

  lane(window) {
    return new Lane(this, window);
  }

  offer(lane) {
    if (!lane.fits()) return;
    this.turns.add(lane);
    this.schedule();
  }

  // At the end of this turn of the event loop, so that all that its events queue shares a frame.
  schedule() {
    if (this.scheduled || this.writing || this.closed) return;
    this.scheduled = true;
    setImmediate(() => {
      this.scheduled = false;
      this.flush();
    });
  }

  flush() {
    if (this.writing || this.closed) return;
    const envelopes = this.collect();
    if (envelopes.length === 0) return;
    this.writing = true;
    this.write({ envelopes }, () => {
      this.writing = false;
      this.flush();
    });
  }

  collect() {
    const envelopes = [];
    let room = this.maxFrame;
    while (this.urgent.length > 0) {
      room -= this.size(this.urgent[0]);
      if (room < 0) return envelopes;
      envelopes.push(this.urgent.shift());
    }
    while (this.turns.size > 0) {
      const [lane] = this.turns;
      if (!lane.fits()) {
        this.turns.delete(lane);
        continue;
      }
      room -= this.size(lane.queue[0]);
      if (room < 0) return envelopes;
      this.turns.delete(lane);
      envelopes.push(lane.take());
      if (lane.fits()) this.turns.add(lane);
    }
    return envelopes;
  }

  /** Whether all that may be sent has been written. */
  idle() {
    return !this.writing && this.urgent.length === 0 && this.turns.size === 0;
  }

  /** Send nothing any more; whoever waits for room goes on and finds its call ended. */
  close() {
    this.closed = true;
    for (const lane of this.turns) lane.clear();
    this.turns.clear();
    this.urgent = [];
  }
}
