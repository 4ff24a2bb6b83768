// I/O: Ollama's client for JavaScript.
import assert from "node:assert/strict";
import { Ollama } from "ollama";
import { FRANCE, PERSON, WEATHER, main, scenario } from "./scenarios.mjs";

const clientOf = (setting) => new Ollama({ host: setting.url });
const options = { temperature: 0, num_predict: 8 };
const bodyOf = (setting, more = {}) => ({ model: setting.model, messages: FRANCE, options, ...more });

async function listed(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

/** The client's exception has the status and the text of the gateway's error. */
async function refused(status, call) {
  try {
    await call();
  } catch (error) {
    assert.equal(error.name, "ResponseError");
    assert.equal(error.status_code, status, error.message);
    return error.message;
  }
  throw new Error(`not refused with ${status}`);
}

scenario("chat", async (setting) => {
  const answer = await clientOf(setting).chat(bodyOf(setting));
  assert.ok(answer.message.content);
  assert.equal(answer.done, true);
  assert.ok(answer.eval_count > 0 && answer.total_duration > 1_000_000);
});

scenario("chat, streamed", async (setting) => {
  const parts = await listed(await clientOf(setting).chat(bodyOf(setting, { stream: true })));
  assert.deepEqual(parts.map((part) => part.done), [...parts.slice(1).map(() => false), true]);
  const whole = await clientOf(setting).chat(bodyOf(setting));
  assert.equal(parts.map((part) => part.message.content).join(""), whole.message.content);
});

scenario("generate", async (setting) => {
  const answer = await clientOf(setting).generate({ model: setting.model, prompt: "Say hello.", options });
  assert.ok(answer.response);
});

scenario("tools", async (setting) => {
  const answer = await clientOf(setting).chat(bodyOf(setting, { tools: [WEATHER] }));
  for (const call of answer.message.tool_calls ?? []) assert.equal(typeof call.function.arguments, "object");
});

scenario("format: a schema", async (setting) => {
  const more = { format: PERSON, options: { temperature: 0, num_predict: 40 } };
  const said = JSON.parse((await clientOf(setting).chat(bodyOf(setting, more))).message.content);
  assert.deepEqual(Object.keys(said).sort(), ["age", "name"]);
});

scenario("embed", async (setting) => {
  const answer = await clientOf(setting).embed({ model: setting.embedding, input: ["a cat", "physics"] });
  assert.deepEqual(answer.embeddings.map((vector) => vector.length), [setting.dimensions, setting.dimensions]);
}, { needsEmbedding: true });

scenario("list, show, ps, version", async (setting) => {
  const client = clientOf(setting);
  assert.ok((await client.list()).models.some((model) => model.name === `${setting.model}:latest`));
  assert.ok((await client.show({ model: setting.model })).capabilities.includes("completion"));
  assert.ok(Array.isArray((await client.ps()).models));
  assert.match((await client.version()).version, /^\d+\.\d+\.\d+/);
});

scenario("management calls are refused with the reason", async (setting) => {
  const client = clientOf(setting);
  assert.match(await refused(403, () => client.pull({ model: "llama3.2" })), /managed by the stack files/);
  await refused(403, () => client.delete({ model: setting.model }));
});

scenario("errors", async (setting) => {
  assert.match(await refused(404, () => clientOf(setting).chat(bodyOf(setting, { model: "none" }))), /none/);
});

scenario("a client that leaves in the middle of a stream", async (setting) => {
  const client = clientOf(setting);
  const stream = await client.chat(bodyOf(setting, { stream: true, options: { num_predict: 400 } }));
  for await (const part of stream) {
    assert.equal(part.done, false);
    break;
  }
  stream.abort();
  assert.ok((await client.chat(bodyOf(setting))).message.content);
});

await main();
