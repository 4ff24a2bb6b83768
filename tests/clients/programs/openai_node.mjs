// I/O: OpenAI's client for Node.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { FRANCE, PERSON, WEATHER, main, raised, scenario } from "./scenarios.mjs";

const clientOf = (setting, more = {}) =>
  new OpenAI({ baseURL: `${setting.url}/v1`, apiKey: "unused", maxRetries: 0, timeout: 120_000, ...more });
const bodyOf = (setting, more = {}) => ({
  model: setting.model, messages: FRANCE, max_tokens: 8, temperature: 0, ...more,
});
const ask = (setting, more) => clientOf(setting).chat.completions.create(bodyOf(setting, more));

async function listed(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

function checkCall(call) {
  assert.equal(call.type, "function");
  assert.ok(call.id);
  assert.equal(call.function.name, "get_weather");
  assert.ok(["Paris", "Oslo"].includes(JSON.parse(call.function.arguments).city));
}

scenario("chat", async (setting) => {
  const answer = await ask(setting);
  assert.equal(answer.object, "chat.completion");
  assert.ok(answer.choices[0].message.content);
  assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

scenario("stream", async (setting) => {
  const chunks = await listed(await ask(setting, { stream: true }));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
  assert.equal(chunks.filter((chunk) => chunk.choices[0].finish_reason).length, 1);
  assert.ok(chunks.at(-1).choices[0].finish_reason);
  const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
  assert.equal(text, (await ask(setting)).choices[0].message.content);
});

scenario("stream with usage", async (setting) => {
  const chunks = await listed(await ask(setting, { stream: true, stream_options: { include_usage: true } }));
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens > 0);
  assert.ok(chunks.every((chunk) => !chunk.usage));
});

scenario("stream helper: events and the final completion", async (setting) => {
  const stream = clientOf(setting).chat.completions.stream(bodyOf(setting));
  let told = "";
  stream.on("content", (delta) => (told += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, told);
  assert.ok(told);
});

scenario("n", async (setting) => {
  const answer = await ask(setting, { n: 2, temperature: 0.8 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
}, { mayRefuse: ["n"] });

scenario("stop and seed", async (setting) => {
  const word = (await ask(setting)).choices[0].message.content.split(/\s+/)[2];
  const answer = await ask(setting, { stop: [word], seed: 7 });
  assert.ok(!answer.choices[0].message.content.includes(word));
  assert.equal(answer.choices[0].finish_reason, "stop");
}, { mayRefuse: ["seed"] });

scenario("logprobs", async (setting) => {
  const { logprobs } = (await ask(setting, { logprobs: true, top_logprobs: 2, max_tokens: 3 })).choices[0];
  assert.ok(logprobs.content.every((token) => token.logprob <= 0 && token.top_logprobs.length === 2));
}, { mayRefuse: ["logprobs", "top_logprobs"] });

scenario("tools: tool_choice required", async (setting) => {
  const answer = await ask(setting, { tools: [WEATHER], tool_choice: "required", parallel_tool_calls: false, max_tokens: 48 });
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  checkCall(answer.choices[0].message.tool_calls[0]);
}, { mayRefuse: ["tools", "tool_choice"] });

scenario("tools: streamed, by the helper", async (setting) => {
  const body = bodyOf(setting, { tools: [WEATHER], tool_choice: "required", parallel_tool_calls: false, max_tokens: 48 });
  const final = await clientOf(setting).chat.completions.stream(body).finalChatCompletion();
  checkCall(final.choices[0].message.tool_calls[0]);
}, { mayRefuse: ["tools", "tool_choice"] });

scenario("response_format: json_schema, by parse", async (setting) => {
  const format = { type: "json_schema", json_schema: { name: "person", strict: true, schema: PERSON } };
  const body = bodyOf(setting, { response_format: format, max_tokens: 40 });
  const answer = await clientOf(setting).chat.completions.parse(body);
  const said = JSON.parse(answer.choices[0].message.content);
  assert.deepEqual(Object.keys(said).sort(), ["age", "name"]);
}, { mayRefuse: ["response_format"] });

scenario("completions", async (setting) => {
  const body = { model: setting.model, prompt: "The capital of France is", max_tokens: 4, temperature: 0 };
  const answer = await clientOf(setting).completions.create(body);
  assert.ok(answer.choices[0].text);
});

scenario("embeddings: base64 (the client's default) and floats", async (setting) => {
  const client = clientOf(setting);
  const input = ["a cat", "quantum physics"];
  const answer = await client.embeddings.create({ model: setting.embedding, input });
  const floats = await client.embeddings.create({ model: setting.embedding, input, encoding_format: "float" });
  assert.deepEqual(answer.data.map((item) => item.embedding.length), [setting.dimensions, setting.dimensions]);
  answer.data[1].embedding.forEach((value, at) => assert.ok(Math.abs(value - floats.data[1].embedding[at]) < 1e-3));
}, { needsEmbedding: true });

scenario("models: list and retrieve", async (setting) => {
  const models = await listed(clientOf(setting).models.list());
  assert.ok(models.some((model) => model.id === setting.model));
  assert.equal((await clientOf(setting).models.retrieve(setting.model)).id, setting.model);
});

scenario("errors: NotFoundError, BadRequestError", async (setting) => {
  const missing = await raised(OpenAI.NotFoundError, () => ask(setting, { model: "no-such-model" }));
  assert.equal(missing.code, "model_not_found");
  const wrong = await raised(OpenAI.BadRequestError, () => ask(setting, { temperature: "hot" }));
  assert.equal(wrong.type, "invalid_request_error");
});

scenario("keys: a good one, a wrong one", async (setting) => {
  const use = (apiKey) => clientOf(setting, { baseURL: `${setting.keyed_url}/v1`, apiKey }).chat.completions.create(
    bodyOf(setting, { model: "chat", max_tokens: 2 }),
  );
  assert.ok((await use(setting.key)).choices);
  await raised(OpenAI.AuthenticationError, () => use("sk-wrong"));
});

scenario("a client that leaves in the middle of a stream, and one that gives up waiting", async (setting) => {
  const stream = await ask(setting, { stream: true, max_tokens: 200 });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    break; // the client aborts the request
  }
  const impatient = clientOf(setting, { timeout: 50 }).chat.completions;
  await raised(OpenAI.APIConnectionTimeoutError, () => impatient.create(bodyOf(setting, { max_tokens: 200 })));
  assert.ok((await ask(setting, { max_tokens: 2 })).choices);
});

await main();
