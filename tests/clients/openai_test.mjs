// The official `openai` package against a running stoker serve.  usage: node openai_test.mjs BASE_URL KEY
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 120_000 });
const model = "ember";
const messages = [{ role: "user", content: "The borrow checker" }];
const greedy = { model, messages, temperature: 0, max_tokens: 24 };

const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "What the weather is in a city",
    strict: true,
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 8 }, days: { type: "integer", minimum: 1, maximum: 9 } },
      required: ["city", "days"],
      additionalProperties: false,
    },
  },
};

async function idle() {
  for (let i = 0; i < 600; i++) {
    const slots = await (await fetch(`${url}/slots`, { headers: { Authorization: `Bearer ${key}` } })).json();
    if (!slots.some((slot) => slot.is_processing)) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  assert.fail("a slot stayed busy");
}

test("models", async () => {
  const names = [];
  for await (const one of client.models.list()) names.push(one.id);
  assert.equal(names.length, 1);
});

test("chat", async () => {
  const answer = await client.chat.completions.create({ ...greedy, n: 2, seed: 1 });
  assert.equal(answer.object, "chat.completion");
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  assert.equal(answer.choices[0].message.content, answer.choices[1].message.content);
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 48);
});

test("a stream says what the whole answer says", async () => {
  const whole = await client.chat.completions.create(greedy);
  const stream = await client.chat.completions.create({ ...greedy, stream: true, stream_options: { include_usage: true } });
  let text = "", reason = null, usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    reason = chunk.choices[0]?.finish_reason ?? reason;
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(reason, whole.choices[0].finish_reason);
  assert.equal(usage.total_tokens, whole.usage.total_tokens);
  const helped = await client.chat.completions.stream(greedy).finalChatCompletion();
  assert.equal(helped.choices[0].message.content, text);
});

test("completions, stop and logprobs", async () => {
  const text = await client.completions.create({ model, prompt: "The sky", max_tokens: 12, temperature: 0, logprobs: 2 });
  assert.equal(text.choices[0].logprobs.tokens.join(""), text.choices[0].text);
  const word = text.choices[0].text.slice(4, 9);
  const stopped = await client.completions.create({ model, prompt: "The sky", max_tokens: 12, temperature: 0, stop: [word] });
  assert.equal(stopped.choices[0].text, text.choices[0].text.slice(0, text.choices[0].text.indexOf(word)));
  const chat = await client.chat.completions.create({ ...greedy, max_tokens: 3, logprobs: true, top_logprobs: 2 });
  assert.equal(chat.choices[0].logprobs.content.length, 3);
  assert.equal(chat.choices[0].logprobs.content[0].top_logprobs.length, 2);
});

test("tools: required, named, streamed, and their results sent back", async () => {
  const asked = { ...greedy, max_tokens: 400, temperature: 1, seed: 2, tools: [weather], parallel_tool_calls: false };
  const answer = await client.chat.completions.create({ ...asked, tool_choice: "required" });
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  const call = answer.choices[0].message.tool_calls[0];
  const { city, days } = JSON.parse(call.function.arguments);
  assert.equal(call.function.name, "get_weather");
  assert.ok(typeof city === "string" && Number.isInteger(days) && days >= 1 && days <= 9);

  const named = { type: "function", function: { name: "get_weather" } };
  const streamed = await client.chat.completions.stream({ ...asked, tool_choice: named }).finalChatCompletion();
  assert.equal(streamed.choices[0].finish_reason, "tool_calls");
  assert.deepEqual(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  assert.ok(streamed.choices[0].message.tool_calls[0].id);

  const history = [...messages, answer.choices[0].message, { role: "tool", tool_call_id: call.id, content: "sunny" }];
  const next = await client.chat.completions.create({ ...greedy, messages: history, tools: [weather], max_tokens: 4 });
  assert.equal(next.choices[0].finish_reason, "length");
});

test("json_schema and json_object", async () => {
  const schema = {
    type: "object",
    properties: { name: { type: "string", maxLength: 10 }, tags: { type: "array", items: { enum: ["a", "b"] }, maxItems: 3 } },
    required: ["name", "tags"],
    additionalProperties: false,
  };
  const format = { type: "json_schema", json_schema: { name: "thing", strict: true, schema } };
  const answer = await client.chat.completions.create({ ...greedy, max_tokens: 300, response_format: format });
  const value = JSON.parse(answer.choices[0].message.content);
  assert.deepEqual(Object.keys(value), ["name", "tags"]);
  assert.ok(value.tags.every((tag) => ["a", "b"].includes(tag)));
  const parsed = await client.chat.completions.parse({ ...greedy, max_tokens: 300, response_format: format });
  assert.equal(parsed.choices[0].message.content, answer.choices[0].message.content);
  const object = await client.chat.completions.create({ ...greedy, max_tokens: 5, response_format: { type: "json_object" } });
  assert.equal(object.choices[0].message.content[0], "{");
});

test("errors are of the package's classes", async () => {
  const bad = client.chat.completions.create({ ...greedy, temperature: "hot" });
  await assert.rejects(bad, (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature" && e.code === 400);
  const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  await assert.rejects(client.models.retrieve("nobody"), OpenAI.NotFoundError);
  await assert.rejects(client.embeddings.create({ model, input: "x" }), (e) => e.status === 501 && /generates text/.test(e.message));
  const many = Array.from({ length: 7 }, (_, i) => client.chat.completions.create({ ...greedy, n: 2, seed: i, temperature: 1, max_tokens: 200 }));
  const results = await Promise.allSettled(many);
  const refused = results.filter((r) => r.status === "rejected");
  assert.ok(refused.length > 0 && refused.length < many.length);
  for (const r of refused) {
    assert.ok(r.reason instanceof OpenAI.RateLimitError);
    assert.ok(Number(r.reason.headers.get("retry-after")) > 0);
  }
});

test("an answer that is given up frees its slot", async () => {
  await idle();
  const stream = await client.chat.completions.create({ ...greedy, max_tokens: 400, temperature: 1, stream: true });
  for await (const chunk of stream) if (chunk.choices[0]?.delta?.content) break;
  await idle();
  const stop = new AbortController();
  const whole = client.chat.completions.create({ ...greedy, max_tokens: 400, temperature: 1 }, { signal: stop.signal });
  setTimeout(() => stop.abort(), 50);
  await assert.rejects(whole, OpenAI.APIUserAbortError);
  await idle();
});
