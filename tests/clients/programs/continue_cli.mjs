// I/O: Continue, by its program for terminals: the same client as in its extensions for VS Code and JetBrains, whose
// windows nobody can look at here. It asks with its own long prompt; its tools are left out, a small model calls none.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { main, scenario } from "./scenarios.mjs";

const PROGRAM = join(import.meta.dirname, "node_modules", "@continuedev", "cli", "dist", "cn.js");
const LIMIT_MS = 150_000;

async function ask(setting, provider, apiBase, more = []) {
  const home = await mkdtemp(join(tmpdir(), "continue-"));
  const options = { maxTokens: 8, contextLength: 2048, temperature: 0 };
  const model = { name: "m", provider, apiBase, apiKey: "unused", model: setting.model, defaultCompletionOptions: options };
  const file = join(home, "config.yaml");
  // JSON is YAML.
  await writeFile(file, JSON.stringify({ name: "c", version: "1.0.0", schema: "v1", models: [{ ...model, roles: ["chat"] }] }));
  try {
    return await said(["--config", file, "--exclude", "*", ...more, "-p", "What is the capital of France?"], home);
  } finally {
    await rm(home, { recursive: true, force: true });
  }
}

function said(argv, home) {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, HOME: home, CONTINUE_GLOBAL_DIR: home, CONTINUE_TELEMETRY_ENABLED: "0" };
    const stdio = ["ignore", "pipe", "pipe"];
    const child = spawn(process.execPath, [PROGRAM, ...argv], { cwd: home, env, stdio, timeout: LIMIT_MS });
    let [out, err] = ["", ""];
    child.stdout.on("data", (data) => (out += data));
    child.stderr.on("data", (data) => (err += data));
    child.on("error", reject);
    child.on("close", (code) => (code === 0 ? resolve(out.trim()) : reject(new Error(`ended with ${code}: ${out}${err}`))));
  });
}

scenario("an answer, by OpenAI's API", async (setting) => {
  assert.ok(await ask(setting, "openai", `${setting.url}/v1`));
});

scenario("an answer, by Ollama's provider", async (setting) => {
  assert.ok(await ask(setting, "ollama", setting.url));
});

scenario("an answer as JSON, for scripts", async (setting) => {
  const answer = JSON.parse(await ask(setting, "openai", `${setting.url}/v1`, ["--format", "json"]));
  assert.ok(answer.response ?? answer, "an object");
});

scenario("a model that is not there is an error, not an answer", async (setting) => {
  const asked = ask({ ...setting, model: "nobody-serves-this" }, "openai", `${setting.url}/v1`);
  await assert.rejects(asked, /does not exist|404/);
});

await main();
