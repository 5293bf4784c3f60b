// OpenAI's client for Node.js does what people do with it. Prints what it got as one JSON object.
// argv: base URL.
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: 'none', maxRetries: 0 });
const messages = [{ role: 'user', content: 'a b c' }];
const out = {};

const whole = await client.chat.completions.create({ model: 'echo', messages });
out.whole = [whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens];

const stream = await client.chat.completions.create({
  model: 'echo', messages, stream: true, stream_options: { include_usage: true },
});
out.pieces = [];
for await (const chunk of stream) {
  const text = chunk.choices[0]?.delta.content;
  if (text) out.pieces.push(text);
  if (chunk.usage) out.streamedTokens = chunk.usage.completion_tokens;
}

const completion = await client.completions.create({ model: 'echo', prompt: ['x y', 'z'] });
out.completions = completion.choices.map((choice) => choice.text);

const vectors = await client.embeddings.create({ model: 'vec', input: ['abc', 'abcdef'] });
out.embeddings = vectors.data.map((one) => one.embedding);

out.models = (await client.models.list()).data.map((model) => model.id);

try {
  await client.chat.completions.create({ model: 'nope', messages });
} catch (error) {
  out.error = [error.constructor.name, error.status, error.code, Boolean(error.requestID)];
}

// `busy` says when to come again, and the client obeys.
const patient = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: 'none', maxRetries: 2 });
const began = performance.now();
try {
  await patient.chat.completions.create({ model: 'busy', messages });
} catch (error) {
  out.busy = [error.constructor.name, error.status, performance.now() - began];
}

// Going away in the middle ends the generation.
const endless = await client.chat.completions.create({ model: 'endless', messages, stream: true });
for await (const chunk of endless) {
  if (chunk.choices[0]?.delta.content) break;
}
endless.controller.abort();

console.log(JSON.stringify(out));
