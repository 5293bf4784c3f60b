// The receiving half of a call: messages out of pieces, and the grants that keep the sender going.
import { Code, RpcError } from './errors.js';
import { MAX_MESSAGE } from './wire.js';

/**
 * One direction of a call as its receiver sees it: puts pieces together, hands messages out in order,
 * and grants the sender the bytes that were taken, so that an idle reader stops a fast sender.
 */
export class Inbox {
  /**
   * @param {number} window Welcome.initial_window
   * @param {(bytes: number) => void} grant sends WINDOW
   */
  constructor(window, grant, maxMessage = MAX_MESSAGE) {
    this.grantAt = Math.max(1, Math.floor(window / 2));
    this.sendGrant = grant;
    this.maxMessage = maxMessage;
    this.consumed = 0; // taken and not granted yet
    this.partial = [];
    this.partialBytes = 0;
    this.partialHeld = 0; // bytes of the unfinished message that are not counted as taken yet
    this.ready = []; // [message, bytes to grant when it is taken]
    this.waiting = null;
    this.ended = false;
    this.error = null;
  }

  /** Take the payload of an envelope that has Flag.MESSAGE. Raises RESOURCE_EXHAUSTED. */
  push(payload, more) {
    if (this.ended) return;
    this.partial.push(payload);
    this.partialBytes += payload.length;
    this.partialHeld += payload.length;
    if (this.partialBytes > this.maxMessage) {
      throw new RpcError(
        Code.RESOURCE_EXHAUSTED,
        'MESSAGE_TOO_LARGE',
        `A message exceeds ${this.maxMessage} bytes; send it in several messages or as a buffer.`,
      );
    }
    if (more) {
      this.takePartial();
      return;
    }
    const message = this.partial.length === 1 ? payload : Buffer.concat(this.partial);
    this.ready.push([message, this.partialHeld]);
    this.partial = [];
    this.partialBytes = 0;
    this.partialHeld = 0;
    this.wake();
  }

  // An unfinished message may be larger than the window, so its pieces count as taken on arrival,
  // but only while no finished message waits: otherwise an idle reader would hold any amount.
  takePartial() {
    if (this.ready.length > 0) return;
    const bytes = this.partialHeld;
    this.partialHeld = 0;
    this.count(bytes);
  }

  count(bytes) {
    this.consumed += bytes;
    if (this.consumed >= this.grantAt && !this.ended) {
      const granted = this.consumed;
      this.consumed = 0;
      this.sendGrant(granted);
    }
  }

  /** No message comes any more; with an error, `next` raises it once the messages are taken. */
  close(error = null) {
    if (this.ended) return;
    this.ended = true;
    this.error = error;
    this.wake();
  }

  /** As close, and forget the messages that were not taken. */
  abort(error) {
    this.ready = [];
    this.ended = false;
    this.close(error);
  }

  wake() {
    this.waiting?.();
    this.waiting = null;
  }

  /** The next message, or undefined at the end. Raises the error that the inbox was closed with. */
  async next() {
    while (this.ready.length === 0) {
      if (this.error) throw this.error;
      if (this.ended) return undefined;
      await new Promise((resolve) => (this.waiting = resolve));
    }
    const [message, bytes] = this.ready.shift();
    this.count(bytes);
    if (this.partialHeld > 0) this.takePartial();
    return message;
  }
}
