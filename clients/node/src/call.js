// What calls that this process opens and calls that it serves have in common.
import { Code, RpcError } from './errors.js';
import { Inbox } from './inbox.js';
import { EMPTY, Flag, Kind } from './wire.js';

/** Scheduling class that a caller may ask for. */
export const CallClass = Object.freeze({ SYSTEM: 1, INTERACTIVE: 2, NORMAL: 3, BATCH: 4 });

const MAX_TIMER_MS = 2 ** 31 - 1;

/** The clock of all deadlines, milliseconds; it never jumps. */
export const now = () => performance.now();

/** One call of a link: an id, an inbox, a lane, a timer. */
export class Call {
  constructor(link, id) {
    this.link = link;
    this.id = id;
    this.ended = false;
    this.lane = link.outbox.lane(link.window);
    this.inbox = new Inbox(link.window, (window) =>
      link.outbox.send({ kind: Kind.WINDOW, call: id, window }),
    );
  }

  /** Run `act` when `deadline` (of performance.now) passes; a deadline beyond 24 days is none. */
  arm(deadline, act) {
    const left = deadline - now();
    if (left <= MAX_TIMER_MS) this.timer = setTimeout(act, Math.max(0, left));
  }

  receive(envelope) {
    if (envelope.kind === Kind.WINDOW) {
      this.lane.grant(envelope.window);
    } else if (envelope.flags & Flag.MESSAGE) {
      const payload = envelope.payload.length ? envelope.payload : EMPTY;
      this.inbox.push(payload, Boolean(envelope.flags & Flag.MORE));
    }
  }

  /** Forget the call. */
  close() {
    this.ended = true;
    clearTimeout(this.timer);
    this.link.calls.delete(this.id);
    this.lane.clear();
  }
}

/** The error of a call whose caller gave up. */
export function cancelled() {
  return new RpcError(Code.CANCELLED, 'CANCELLED', 'The call was cancelled.');
}
