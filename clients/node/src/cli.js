#!/usr/bin/env node
// llmos-node: list models, stream a generation, or serve the echo service through the kernel.
import { parseArgs } from 'node:util';

import { Client } from './client.js';
import { ECHO, echoHandlers } from './echo.js';
import { RpcError } from './errors.js';
import { defaultAddress } from './host.js';
import { Port } from './port.js';

const USAGE = `Usage:
  llmos-node models
  llmos-node generate MODEL PROMPT [--max-tokens N] [--temperature T] [--seed N] [--raw]
  llmos-node serve-echo [--name NAME] [--key KEY]...

Options of all commands:
  --address ADDRESS   the kernel's, unix:/path or host:port (default: $LLMOS_ADDRESS, or its Unix
                      socket in the state directory)
  --timeout SECONDS   give up after that long (default 120; serve-echo: to find the kernel, 30)
  --raw               continue PROMPT as it is instead of answering it as a chat
`;
const OPTIONS = {
  address: { type: 'string' },
  timeout: { type: 'string' },
  'max-tokens': { type: 'string' },
  temperature: { type: 'string' },
  seed: { type: 'string' },
  raw: { type: 'boolean' },
  name: { type: 'string', default: 'node-echo' },
  key: { type: 'string', multiple: true, default: [''] },
  help: { type: 'boolean', short: 'h' },
};

class UsageError extends Error {}

function number(values, name) {
  const text = values[name];
  if (text === undefined) return undefined;
  if (text.trim() === '' || !Number.isFinite(Number(text)) || Number(text) < 0) {
    throw new UsageError(`--${name} is ${JSON.stringify(text)}; it must be a number from 0 on.`);
  }
  return Number(text);
}

async function models(client, options) {
  for (const model of await client.models(options)) {
    const state = model.state.replace('MODEL_STATE_', '').toLowerCase();
    console.log(`${model.name}@${model.version}\t${state}\t${model.task}\t${model.engine}`);
  }
}

async function generate(client, options, [model, prompt], values) {
  const chat = { messages: [{ role: 'user', content: prompt }] };
  const request = { model, ...(values.raw ? { prompt } : { chat }), sampling: {} };
  request.max_tokens = number(values, 'max-tokens') ?? 0;
  const temperature = number(values, 'temperature');
  if (temperature !== undefined) request.sampling.temperature = temperature;
  if (number(values, 'seed') !== undefined) request.sampling.seed = values.seed;
  let usage;
  for await (const piece of client.generate(request, options)) {
    process.stdout.write(piece.text);
    usage = piece.usage ?? usage;
  }
  process.stdout.write('\n');
  if (usage) console.error(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
}

async function serveEcho(address, timeoutMs, values) {
  const port = new Port(address, values.name);
  port.serve(ECHO, echoHandlers(values.name), { keys: values.key });
  const stop = () => void port.stop();
  for (const name of ['SIGTERM', 'SIGINT']) process.once(name, stop);
  await port.start({ timeoutMs });
  console.log(`serving ${ECHO.name} as ${values.name}, pid ${process.pid}`);
  const reason = await port.closed;
  if (reason.reason !== 'PORT_STOPPED') throw reason;
}

async function main() {
  const { values, positionals } = parseArgs({ options: OPTIONS, allowPositionals: true });
  const [command, ...rest] = positionals;
  if (values.help) return void process.stdout.write(USAGE);
  const wanted = { models: 0, generate: 2, 'serve-echo': 0 }[command];
  if (wanted === undefined) throw new UsageError(`There is no command ${command ?? ''}.`);
  if (rest.length !== wanted) throw new UsageError(`${command} takes ${wanted} arguments.`);
  const address = values.address ?? defaultAddress();
  const seconds = number(values, 'timeout');
  const options = seconds === undefined ? {} : { timeoutMs: seconds * 1000 };
  if (command === 'serve-echo') return serveEcho(address, options.timeoutMs, values);
  const client = new Client(address);
  try {
    await (command === 'models' ? models(client, options) : generate(client, options, rest, values));
  } finally {
    client.close();
  }
}

// The outermost place: whatever went wrong becomes one line and an exit code.
main().catch((error) => {
  const usage = error instanceof UsageError || error.code?.startsWith?.('ERR_PARSE_ARGS');
  const text = error instanceof RpcError ? error.toString() : error.message;
  process.stderr.write(`llmos-node: ${text}\n${usage ? USAGE : ''}`);
  process.exitCode = usage ? 2 : 1;
});
