import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { ECHO, echoHandlers } from '../src/echo.js';
import { RpcError } from '../src/errors.js';
import { Port } from '../src/port.js';
import { Kind } from '../src/wire.js';
import { Peer } from './peer.js';

const peer = new Peer();
let server;
let caller;
let echo;
const handlers = echoHandlers('echo');

before(async () => {
  await peer.start();
  server = new Port(peer.address, 'server');
  server.serve(ECHO, handlers, { keys: ['', 'k'], credits: 7 });
  await server.start();
  caller = new Port(peer.address, 'caller');
  await caller.start();
  echo = caller.client(ECHO);
});

after(async () => {
  await caller.stop(100);
  await server.stop(100);
  peer.close();
});

const seen = (kind, name) => peer.seen.filter((one) => one.kind === kind && one.port === name);

async function all(iterable) {
  const out = [];
  for await (const one of iterable) out.push(one);
  return out;
}

test('HELLO comes first, EXPORT carries keys, credits and descriptors', () => {
  assert.equal(peer.seen[0].kind, Kind.HELLO);
  assert.equal(peer.seen[0].hello.pid, process.pid);
  const [declared] = seen(Kind.EXPORT, 'server');
  assert.deepEqual(declared.export.keys, ['', 'k']);
  assert.equal(declared.export.credits, 7);
  assert.equal(declared.export.files.length, 3);
});

test('unary: reply, context, metadata', async () => {
  let headers;
  const options = { metadata: { Who: 'me' }, timeoutMs: 5000, onHeaders: (pairs) => (headers = pairs) };
  const reply = await echo.Echo({ text: 'hi', payload: Buffer.from([1, 2]) }, options);
  assert.equal(reply.text, 'hi');
  assert.deepEqual([...reply.payload], [1, 2]);
  assert.equal(reply.context.metadata.who, 'me');
  assert.ok(reply.context.remaining_ms > 0 && reply.context.remaining_ms <= 5000);
  assert.equal(headers, undefined);
  assert.equal(seen(Kind.OPEN, 'caller').at(-1).call % 2, 1);
});

test('messages far over the window, both ways and in every arity', async () => {
  const payload = Buffer.alloc(5 << 20, 'abcdefg');
  assert.ok((await echo.Echo({ payload })).payload.equals(payload));
  const streamed = await all(echo.EchoStream({ payload, count: 3 }));
  assert.deepEqual(streamed.map((one) => one.payload.equals(payload)), [true, true, true]);
  const requests = [{ text: 'a', payload }, { text: 'b', payload }];
  const collected = await echo.Collect(requests);
  assert.deepEqual(collected, { text: 'ab', payload_bytes: String(10 << 20), count: 2 });
  const conversed = await all(echo.Converse(requests));
  assert.deepEqual(conversed.map((one) => one.payload.equals(payload)), [true, true]);
});

test('a conversation goes back and forth', async () => {
  const heard = [];
  let next;
  const turns = async function* () {
    for (const text of ['a', 'b', 'c']) {
      yield { text };
      await new Promise((resolve) => (next = resolve));
    }
  };
  for await (const { text } of echo.Converse(turns())) {
    heard.push(text);
    next();
  }
  assert.deepEqual(heard, ['a', 'b', 'c']);
});

test('many calls at once share frames', async () => {
  const frames = peer.frames;
  const texts = Array.from({ length: 500 }, (_, index) => `t${index}`);
  const replies = await Promise.all(texts.map((text) => echo.Echo({ text })));
  assert.deepEqual(replies.map((one) => one.text), texts);
  const used = peer.frames - frames; // the peer itself sends every envelope by itself
  assert.ok(used < 500, `${used} frames for 1,000 envelopes`);
});

test('errors carry code, reason and message; unknown methods are UNIMPLEMENTED', async () => {
  await assert.rejects(echo.Echo({ fail_code: 9 }), { code: 9, reason: 'ECHO_ASKED' });
  await assert.rejects(echo.Echo({ fail_code: 99 }), { code: 3, reason: 'BAD_CODE' });
  await assert.rejects(all(echo.EchoStream({ count: 2, fail_code: 5 })), { code: 5 });
  const strange = structuredClone({ path: '/llmos.example.echo.v1.Echo/Nope' });
  const { methods } = ECHO;
  const client = caller.client({ methods: { Nope: { ...methods.Echo, ...strange } } });
  await assert.rejects(client.Nope({}), { code: 12, reason: 'NO_SUCH_METHOD' });
  const garbage = { ...methods.Echo, requestSerialize: () => Buffer.from('\xff\xff\xff', 'latin1') };
  await assert.rejects(caller.client({ methods: { Echo: garbage } }).Echo({}), {
    code: 3,
    reason: 'BAD_MESSAGE',
  });
});

test('deadlines end a call here and stop the work there', async () => {
  const start = performance.now();
  await assert.rejects(echo.Echo({ delay_ms: 60000 }, { timeoutMs: 50 }), { code: 4 });
  assert.ok(performance.now() - start < 2000);
  await sleep(50);
  assert.equal(server.link.calls.size, 0);
});

test('leaving a stream, and an abort, send CANCEL and stop the work', async () => {
  const before = seen(Kind.CANCEL, 'caller').length;
  for await (const { index } of echo.EchoStream({ count: 1000, interval_ms: 5 })) {
    if (index === 2) break;
  }
  const aborter = new AbortController();
  const call = echo.Echo({ delay_ms: 60000 }, { signal: aborter.signal });
  setTimeout(() => aborter.abort(), 20);
  await assert.rejects(call, { code: 1, reason: 'CANCELLED' });
  await sleep(50);
  assert.equal(seen(Kind.CANCEL, 'caller').length, before + 2);
  assert.equal(server.link.calls.size, 0);
  assert.equal(caller.link.calls.size, 0);
  await assert.rejects(echo.Echo({}, { signal: AbortSignal.abort() }), { code: 1 });
});

test('a slow reader holds its own sender back, and nobody else', async () => {
  const payload = Buffer.alloc(64 * 1024);
  const start = peer.seen.length;
  const stream = echo.EchoStream({ payload, count: 200 })[Symbol.asyncIterator]();
  await stream.next();
  await sleep(200);
  const sent = peer.seen.slice(start).filter((one) => one.payload.length > 60000);
  assert.ok(sent.length < 40, `${sent.length} unread messages`);
  assert.equal((await echo.Echo({ text: 'meanwhile' })).text, 'meanwhile');
  let count = 1;
  while (!(await stream.next()).done) count += 1;
  assert.equal(count, 200);
});

test('a request that fails half-way cancels the call', async () => {
  const requests = async function* () {
    yield { text: 'a' };
    throw new RpcError(3, 'MINE', 'The source broke.');
  };
  await assert.rejects(echo.Collect(requests()), { reason: 'MINE' });
});

test('after a crash of the kernel: attached and exported again, calls go on', async () => {
  const slow = echo.Echo({ text: 'again', delay_ms: 300 });
  const indices = [];
  const stream = (async () => {
    for await (const { index } of echo.EchoStream({ count: 40, interval_ms: 10 })) indices.push(index);
  })();
  const collect = echo.Collect(
    (async function* () {
      yield { text: 'a' };
      await sleep(60000, undefined, { ref: false });
    })(),
  );
  const lost = assert.rejects(collect, { code: 14, reason: 'KERNEL_LOST' });
  await sleep(100);
  peer.crash();
  await peer.start();
  const waited = echo.Echo({ text: 'while away' }); // waits for the next link
  assert.equal((await slow).text, 'again');
  assert.equal((await waited).text, 'while away');
  await stream;
  assert.deepEqual(indices, Array.from({ length: 40 }, (_, index) => index));
  await lost;
});

test('stop drains: the running call ends, later ones are refused', async () => {
  const other = new Port(peer.address, 'other');
  await other.start();
  const call = other.client(ECHO).Echo({ text: 'last', delay_ms: 100 });
  await sleep(30);
  const stopping = server.stop(5000);
  assert.equal((await call).text, 'last');
  await stopping;
  await assert.rejects(other.client(ECHO).Echo({}), { code: 12 });
  await other.stop(100);
  await assert.rejects(other.client(ECHO).Echo({}), { reason: 'PORT_STOPPED' });
});

test('without a kernel start fails with the cause', async () => {
  const port = new Port('unix:/nowhere/kernel.sock', 'x');
  const match = { code: 14, reason: 'KERNEL_UNREACHABLE', message: /nowhere/ };
  await assert.rejects(port.start({ timeoutMs: 200 }), match);
  await port.closed;
});
