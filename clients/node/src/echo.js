// The echo service of llmos/example/echo/v1/echo.proto: a server that is not Python.
import { setTimeout as sleep } from 'node:timers/promises';

import { Code, RpcError } from './errors.js';
import { Protos } from './protos.js';

export const ECHO = new Protos(['llmos/example/echo/v1/echo.proto']).service(
  'llmos.example.echo.v1.Echo',
);

const MAX_COUNT = 65536; // a stream's resume log has at most as many bytes

function failIfAsked(code) {
  if (code > 16) {
    const message = `fail_code is ${code}; gRPC status codes go to 16.`;
    throw new RpcError(Code.INVALID_ARGUMENT, 'BAD_CODE', message);
  }
  if (code > 0) throw new RpcError(code, 'ECHO_ASKED', `The client asked for code ${code}.`);
}

/** The handlers, for Port.serve; `name` is what answers say who answered. */
export function echoHandlers(name) {
  return {
    async Echo(request, call) {
      await sleep(request.delay_ms, undefined, { signal: call.signal });
      failIfAsked(request.fail_code);
      const context = {
        server: name,
        pid: process.pid,
        key: call.key,
        tenant: call.tenant,
        remaining_ms: call.remainingMs ?? -1,
        attempt: call.attempt,
        metadata: Object.fromEntries(call.metadata.filter(([key]) => !key.endsWith('-bin'))),
      };
      return { text: request.text, payload: request.payload, context };
    },

    async *EchoStream(request, call) {
      const { count, text, payload } = request;
      if (count > MAX_COUNT) {
        const message = `count is ${count}; at most ${MAX_COUNT} answers are given.`;
        throw new RpcError(Code.OUT_OF_RANGE, 'BAD_COUNT', message);
      }
      // One byte of resume log per answer that was given: its length is where to go on.
      for (let index = call.resumeLog.length; index < count; index++) {
        await sleep(request.interval_ms, undefined, { signal: call.signal });
        call.appendResumeLog(Buffer.of(1));
        yield { index, text, payload, pid: process.pid };
      }
      failIfAsked(request.fail_code);
    },

    async Collect(requests) {
      const reply = { text: '', payload_bytes: 0, count: 0 };
      for await (const request of requests) {
        reply.text += request.text;
        reply.payload_bytes += request.payload.length;
        reply.count += 1;
      }
      return reply;
    },

    async *Converse(requests) {
      for await (const { text, payload } of requests) yield { text, payload };
    },
  };
}
