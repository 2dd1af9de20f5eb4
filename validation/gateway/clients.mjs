// What JavaScript programs do with an OpenAI endpoint: openai-node.
// usage: node clients.mjs URL   (fails at the first thing that is not as it is with OpenAI)
import assert from 'node:assert';
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 });
const ask = { messages: [{ role: 'user', content: 'hello' }], max_tokens: 6 };
const tool = { type: 'function', function: { name: 'f', parameters: { type: 'object', properties: {} } } };

const checks = {
  async models() {
    assert((await client.models.list()).data.some((model) => model.id === 'small'));
  },
  async chat() {
    const { data, response } = await client.chat.completions.create({ model: 'gpt-4o', ...ask }).withResponse();
    assert(data.usage.total_tokens > 0);
    assert.equal(response.headers.get('x-boute-model'), 'large');
  },
  async stream() {
    let last;
    let chunks = 0;
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create({ model: 'small', ...options, ...ask })) {
      chunks += 1;
      last = chunk;
    }
    assert(chunks > 1 && last.usage.completion_tokens > 0);
  },
  async streamedTools() {
    // With random weights llama.cpp leaves out the role of one stream in five, which this helper refuses.
    const stream = client.chat.completions.stream({ model: 'exact', tools: [tool], ...ask });
    assert((await stream.finalChatCompletion()).choices.length > 0);
  },
  async abort() {
    const stream = await client.chat.completions.create({ model: 'large', stream: true, ...ask, max_tokens: 2000 });
    for await (const _ of stream) {
      stream.controller.abort();
      break;
    }
  },
  async errors() {
    await assert.rejects(client.chat.completions.create({ model: 'none', ...ask }), (error) => {
      return error instanceof OpenAI.NotFoundError && error.code === 'model_not_found';
    });
  },
};
for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log('ok   ', name);
}
