import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';

import { RpcError } from '../src/errors.js';
import { Inbox } from '../src/inbox.js';
import { Outbox } from '../src/outbox.js';
import { Flag, Kind, PIECE, fromMetadata, pieces, toMetadata } from '../src/wire.js';

const bytes = (length, fill = 1) => Buffer.alloc(length, fill);

function outbox({ held = false } = {}) {
  const frames = [];
  const dones = [];
  const box = new Outbox(
    (frame, done) => {
      frames.push(frame.envelopes);
      if (held) dones.push(done);
      else setImmediate(done);
    },
    (envelope) => JSON.stringify(envelope).length,
  );
  box.maxFrame = 1 << 20;
  return { box, frames, dones };
}

test('a message is cut into pieces that give the message again', () => {
  for (const [length, count] of [[0, 1], [1, 1], [PIECE, 1], [PIECE + 1, 2], [3 * PIECE, 3]]) {
    const message = Buffer.from(Array.from({ length: Math.min(length, 99) }, (_, i) => i));
    const whole = Buffer.concat([message, bytes(length - message.length)]);
    const made = [...pieces(whole)];
    assert.equal(made.length, count);
    assert.deepEqual(made.map(([, more]) => more), [...Array(count - 1).fill(true), false]);
    assert.ok(Buffer.concat(made.map(([piece]) => piece)).equals(whole));
  }
});

test('an inbox puts pieces together and keeps the order', async () => {
  const inbox = new Inbox(1000, () => {});
  inbox.push(Buffer.from('one '), true);
  inbox.push(Buffer.from('two'), false);
  inbox.push(Buffer.from('three'), false);
  inbox.close();
  assert.equal(String(await inbox.next()), 'one two');
  assert.equal(String(await inbox.next()), 'three');
  assert.equal(await inbox.next(), undefined);
});

test('an inbox grants what was taken, in halves of the window', async () => {
  const grants = [];
  const inbox = new Inbox(100, (count) => grants.push(count));
  for (let i = 0; i < 5; i++) inbox.push(bytes(20), false);
  assert.deepEqual(grants, []);
  for (let i = 0; i < 5; i++) await inbox.next();
  assert.deepEqual(grants, [60]);
});

test('a message larger than the window arrives, an idle reader holds no more than that', async () => {
  const grants = [];
  const inbox = new Inbox(100, (count) => grants.push(count));
  for (let i = 0; i < 9; i++) inbox.push(bytes(50), true);
  inbox.push(bytes(50), false);
  const granted = () => grants.reduce((sum, one) => sum + one, 0);
  assert.equal(granted(), 450);
  for (let i = 0; i < 9; i++) inbox.push(bytes(10), true); // of a second message: nobody reads
  assert.equal(granted(), 450);
  assert.equal((await inbox.next()).length, 500);
  assert.equal(granted(), 590);
});

test('an inbox refuses a message over the limit', () => {
  const inbox = new Inbox(100, () => {}, 200);
  inbox.push(bytes(150), true);
  assert.throws(() => inbox.push(bytes(51), true), { reason: 'MESSAGE_TOO_LARGE' });
});

test('an inbox that is aborted forgets its messages, one that is closed does not', async () => {
  const error = new RpcError(14, 'GONE', 'gone');
  const closed = new Inbox(100, () => {});
  closed.push(bytes(1), false);
  closed.close(error);
  assert.equal((await closed.next()).length, 1);
  await assert.rejects(closed.next(), error);
  const aborted = new Inbox(100, () => {});
  aborted.push(bytes(1), false);
  aborted.abort(error);
  await assert.rejects(aborted.next(), error);
});

test('what is queued while a write is in flight leaves as one frame', async () => {
  const { box, frames, dones } = outbox({ held: true });
  const lane = box.lane(1 << 20);
  lane.pushMessage(1, bytes(10));
  await turn();
  for (let i = 0; i < 20; i++) lane.pushMessage(1, bytes(10));
  await turn();
  assert.deepEqual(frames.map((frame) => frame.length), [1]);
  dones.shift()();
  assert.deepEqual(frames.map((frame) => frame.length), [1, 20]);
});

test('frames stay under the limit and calls take turns', async () => {
  const { box, frames } = outbox();
  const large = box.lane(8 << 20);
  const small = box.lane(8 << 20);
  large.pushMessage(1, bytes(4 << 20));
  small.pushMessage(3, bytes(10));
  while (!box.idle()) await turn();
  for (const frame of frames) {
    const sum = frame.reduce((total, one) => total + one.payload.length + 48, 0);
    assert.ok(sum <= 1 << 20, `frame of ${sum} bytes`);
  }
  const order = frames.flat().map((one) => one.call);
  assert.equal(order.indexOf(3), 1); // right after the first piece of the large one
  const got = frames.flat().filter((one) => one.call === 1);
  assert.equal(got.reduce((sum, one) => sum + one.payload.length, 0), 4 << 20);
  assert.deepEqual(got.map((one) => one.flags & Flag.MORE), [...Array(15).fill(Flag.MORE), 0]);
});

test('a lane stops at its window, goes on when granted, and holds back its writer', async () => {
  const { box, frames } = outbox();
  const lane = box.lane(100);
  lane.pushMessage(1, bytes(250));
  const sent = () => frames.flat().reduce((sum, one) => sum + one.payload.length, 0);
  let free = false;
  void lane.room().then(() => (free = true));
  while (!box.idle()) await turn();
  assert.equal(sent(), 100);
  assert.equal(free, false);
  lane.grant(50);
  await turn();
  assert.equal(sent(), 150);
  assert.equal(free, true);
  lane.grant(100);
  while (!box.idle()) await turn();
  assert.equal(sent(), 250);
});

test('an envelope over the frame limit is refused before it is queued', () => {
  const { box } = outbox();
  box.maxFrame = 1000;
  const open = { method: '/a/b', metadata: [{ key: 'k', value: 'x'.repeat(2000) }] };
  assert.throws(() => box.lane(100).push({ kind: Kind.OPEN, call: 1, open }), {
    reason: 'FRAME_TOO_LARGE',
  });
});

test('metadata: text and binary values survive', () => {
  const pairs = [['a', 'ä'], ['b-bin', Buffer.from([0, 255])], ['a', '2']];
  assert.deepEqual(fromMetadata(toMetadata(pairs)), pairs);
  assert.deepEqual(fromMetadata(toMetadata({ Key: 'v' })), [['key', 'v']]);
});

test('errors keep code, reason, details and retry time over the wire', () => {
  const more = { details: { near: 'x' }, retryAfterMs: 250 };
  const error = new RpcError(5, 'NO_SUCH_MODEL', 'There is no x.', more);
  const { code, message, trailers } = error.toWire();
  const again = RpcError.fromWire(code, message, fromMetadata(toMetadata(trailers)));
  assert.deepEqual({ ...again }, { ...error });
  assert.equal(String(again), 'NOT_FOUND NO_SUCH_MODEL: There is no x.');
  assert.equal(RpcError.fromWire(14, 'x', [['grpc-status-details-bin', 'junk']]).reason, 'UNAVAILABLE');
});
