// I/O: what the programs of Node's clients have in common; see scenarios.py, whose lines these are.
const all = [];

export const FRANCE = [{ role: "user", content: "What is the capital of France?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};
export const WEATHER = {
  type: "function",
  function: { name: "get_weather", description: "Tells the weather of a city.", parameters },
};
export const WEATHER_INPUT = parameters;
export const PERSON = {
  type: "object",
  properties: { name: { type: "string", enum: ["Ada", "Bo"] }, age: { type: "integer", enum: [7, 8] } },
  required: ["name", "age"],
  additionalProperties: false,
};

export function scenario(feature, run, { mayRefuse = [], needsEmbedding = false } = {}) {
  all.push({ feature, run, mayRefuse, needsEmbedding });
}

export async function main() {
  const setting = JSON.parse(process.argv[2]);
  for (const { feature, run, mayRefuse, needsEmbedding } of all) {
    let outcome = "works";
    let detail = "";
    if (needsEmbedding && !setting.embedding) {
      outcome = "absent";
    } else {
      try {
        await run(setting);
      } catch (error) {
        const refused = error?.status === 400 ? error?.param : undefined;
        [outcome, detail] = mayRefuse.includes(refused) ? ["refused", refused] : ["failed", String(error?.stack ?? error)];
      }
    }
    console.log(JSON.stringify({ feature, outcome, detail: detail.slice(0, 3000) }));
  }
  process.exit(0);
}

/** Return what a call was refused with; `kind` is the exception that the SDK promises. */
export async function raised(kind, call) {
  try {
    await call();
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Error(`no ${kind.name}`);
}
