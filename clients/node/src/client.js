// A client of LLM OS over plain gRPC: what any stub in any language can do at the kernel's address.
import grpc from '@grpc/grpc-js';

import { Code, RpcError, unreachable } from './errors.js';
import { defaultAddress } from './host.js';
import { Protos } from './protos.js';

export { CallClass } from './call.js';
export { Code, RpcError } from './errors.js';
export { Port } from './port.js';
export { Protos } from './protos.js';

const EXECUTION = 'llmos.api.execution.v1.Execution';
const CHANNEL = {
  'grpc.max_receive_message_length': 64 * 1024 * 1024,
  'grpc.max_send_message_length': 64 * 1024 * 1024,
};
const TIMEOUT_MS = 120000; // the first call of a model loads it

/** A connection to the kernel. Errors of all methods are RpcError. */
export class Client {
  /** @param {string} address `unix:/path` or `host:port` */
  constructor(address = defaultAddress(), credentials = grpc.credentials.createInsecure()) {
    const protos = new Protos(['llmos/api/execution/v1/execution.proto']);
    this.address = address;
    const { methods } = protos.service(EXECUTION);
    const Execution = grpc.makeGenericClientConstructor(methods, EXECUTION);
    this.execution = new Execution(address, credentials, CHANNEL);
  }

  /** The models in storage and those that are loaded (Model of execution.proto). */
  async models(options = {}) {
    return (await this.unary('ListModels', {}, options)).models;
  }

  /** One vector (array of numbers) per text. */
  async embed(model, texts, options = {}) {
    const { embeddings } = await this.unary('Embed', { model, texts }, options);
    return embeddings.map((one) => one.values);
  }

  /**
   * Stream a generation: yields GenerateResponse messages. Leaving the loop cancels the work.
   *
   * @param {Object} request GenerateRequest of execution.proto
   * @param {{timeoutMs?: number, signal?: AbortSignal, metadata?: Object<string, string>}} [options]
   */
  async *generate(request, options = {}) {
    const { metadata, settings } = prepare(options);
    yield* this.stream(this.execution.Generate(request, metadata, settings), options.signal);
  }

  async *stream(call, signal) {
    const cancel = () => call.cancel();
    signal?.addEventListener('abort', cancel);
    if (signal?.aborted) cancel();
    try {
      for await (const message of call) yield message;
    } catch (error) {
      throw this.explain(error);
    } finally {
      signal?.removeEventListener('abort', cancel);
      call.on('error', () => {}); // of the cancellation itself
      call.cancel();
    }
  }

  unary(method, request, options) {
    const { metadata, settings } = prepare(options);
    return new Promise((resolve, reject) => {
      const cancel = () => call.cancel();
      const call = this.execution[method](request, metadata, settings, (error, reply) => {
        options.signal?.removeEventListener('abort', cancel);
        if (error) reject(this.explain(error));
        else resolve(reply);
      });
      options.signal?.addEventListener('abort', cancel);
      if (options.signal?.aborted) cancel();
    });
  }

  // A status without a reason did not come from LLM OS but from the connection to it.
  explain(error) {
    const known = RpcError.fromGrpc(error);
    const connection = known.code === Code.UNAVAILABLE && known.reason === 'UNAVAILABLE';
    return connection ? unreachable(this.address, known.message) : known;
  }

  close() {
    this.execution.close();
  }
}

function prepare({ timeoutMs = TIMEOUT_MS, metadata = {} }) {
  const made = new grpc.Metadata();
  for (const [key, value] of Object.entries(metadata)) made.add(key, value);
  return { metadata: made, settings: { deadline: Date.now() + timeoutMs } };
}
