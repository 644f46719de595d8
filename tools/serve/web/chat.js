// The chat: a conversation that is kept in this browser, answers streamed from /v1/chat/completions. A model's text
// reaches the page as text nodes only.
"use strict";

const $ = (id) => document.getElementById(id);

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// What is kept: storage may be full or forbidden, and then nothing is.
const kept = {
  read(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem("stoker." + name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(name, value) {
    try {
      localStorage.setItem("stoker." + name, JSON.stringify(value));
    } catch {}
  },
};

let settings = kept.read("settings", {});

// All requests go through here: relative to the page, with the key.
function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (settings.key) headers["Authorization"] = "Bearer " + settings.key;
  return fetch(path, { ...options, headers });
}

// --- text ---------------------------------------------------------------------------------------------------------

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^\s*](?:[\s\S]*?[^\s*])?)\*\*|(?<![\w*])\*([^\s*](?:[^*\n]*[^\s*])?)\*(?![\w*])|\bhttps?:\/\/[^\s<>()\[\]"'`]+[^\s<>()\[\]"'`.,;:!?]/g;

function inline(parent, text) {
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    parent.append(text.slice(from, found.index));
    from = found.index + found[0].length;
    if (found[1]) parent.append(make("code", "", found[2].trim() || found[2]));
    else if (found[3]) parent.append(make("strong", "", found[3]));
    else if (found[4]) parent.append(make("em", "", found[4]));
    else {
      const link = make("a", "", found[0]);
      link.href = found[0];
      link.rel = "noopener noreferrer";
      link.target = "_blank";
      parent.append(link);
    }
  }
  parent.append(text.slice(from));
  return parent;
}

function codeBlock(language, text) {
  const copy = make("button", "", "Copy");
  copy.type = "button";
  copy.addEventListener("click", () => copyText(text, copy));
  return make("div", "code", make("div", "bar", make("span", "", language || "text"), copy), make("pre", "", make("code", "", text)));
}

async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = label), 1500);
}

// Paragraphs, headings, lists, fenced code; what is not understood stays as it was written.
function render(target, text) {
  const blocks = [];
  const lines = text.split("\n");
  let paragraph = [];
  const flush = () => {
    if (paragraph.join("").trim()) blocks.push(inline(make("p"), paragraph.join("\n").trim()));
    paragraph = [];
  };
  for (let i = 0; i < lines.length; i++) {
    const fence = lines[i].match(/^\s*(```+|~~~+)\s*([\w+#.-]*)/);
    const heading = lines[i].match(/^#{1,6}\s+(.*)$/);
    const item = lines[i].match(/^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/);
    if (fence) {
      flush();
      const body = [];
      while (++i < lines.length && !lines[i].trim().startsWith(fence[1])) body.push(lines[i]);
      blocks.push(codeBlock(fence[2], body.join("\n")));
    } else if (heading) {
      flush();
      blocks.push(inline(make("h3"), heading[1]));
    } else if (item) {
      flush();
      const tag = item[1] ? "OL" : "UL";
      let list = blocks.at(-1);
      if (list?.tagName !== tag || lines[i - 1]?.trim() === "" && !item[1]) {
        list = make(tag.toLowerCase());
        if (item[1]) list.start = Number(item[1]);
        blocks.push(list);
      }
      list.append(inline(make("li"), item[2]));
    } else if (lines[i].trim() === "") {
      flush();
    } else {
      paragraph.push(lines[i]);
    }
  }
  flush();
  if (blocks.length === 0) blocks.push(make("p"));
  target.replaceChildren(...blocks);
}

// --- messages -------------------------------------------------------------------------------------------------------

// {role, content, reasoning, note, failed}
let conversation = kept.read("conversation", []).filter((m) => m && typeof m.content === "string");
let running = null;  // AbortController of the answer that is being written

function save() {
  kept.write("conversation", conversation);
}

function atBottom() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}

function toBottom() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

function show(message) {
  const text = make("div", "text");
  const element = make("div", "message " + message.role, text);
  const view = { element, text, thinking: null, update };
  let drawn = "";

  function updateThinking() {
    if (!message.reasoning) return;
    if (!view.thinking) {
      view.thinking = make("details", "thinking", make("summary"), make("div"));
      element.prepend(view.thinking);
    }
    const thinks = message.running && !message.content;
    view.thinking.firstChild.textContent = thinks ? "Thinking …" : "Thoughts";
    view.thinking.lastChild.textContent = message.reasoning;
  }

  function update() {
    updateThinking();
    element.classList.toggle("running", Boolean(message.running));
    if (message.role === "user") text.textContent = message.content;
    else if (drawn !== message.content || !text.firstChild) render(text, (drawn = message.content));
    element.querySelector(".foot")?.remove();
    element.querySelector(".failed")?.remove();
    if (message.failed) {
      const alert = make("p", "failed", message.failed);
      alert.setAttribute("role", "alert");
      element.append(alert);
    }
    if (message.role === "assistant" && !message.running) element.append(foot(message));
  }

  update();
  $("messages").append(element);
  return view;
}

function foot(message) {
  const line = make("div", "foot");
  const button = (label, action) => {
    const b = make("button", "", label);
    b.type = "button";
    b.addEventListener("click", () => action(b));
    line.append(b);
  };
  if (message.content) button("Copy", (b) => copyText(message.content, b));
  if (message === conversation.at(-1)) button("Again", again);
  if (message.note) line.append(message.note);
  return line;
}

function showAll() {
  for (const old of document.querySelectorAll(".message")) old.remove();
  $("empty").hidden = conversation.length > 0;
  for (const message of conversation) show(message);
  toBottom();
}

// --- answers --------------------------------------------------------------------------------------------------------

function wish() {
  const messages = conversation.filter((m) => m.content && !m.running).map(({ role, content }) => ({ role, content }));
  if (settings.system) messages.unshift({ role: "system", content: settings.system });
  const body = { messages, stream: true };
  for (const name of ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed"])
    if (typeof settings[name] === "number") body[name] = settings[name];
  if (settings.thinking) body.chat_template_kwargs = { thinking: true };
  return body;
}

// The objects of an event stream, as they come.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function failureOf(response) {
  let text = response.statusText;
  try {
    text = (await response.json()).error.message;
  } catch {}
  return `${text} (${response.status})`;
}

function note(timings, reason, seconds, pieces) {
  const parts = [];
  if (timings) parts.push(`${timings.predicted_n} tokens`, `${timings.predicted_per_second.toFixed(1)} tokens/s`);
  else if (pieces > 1) parts.push(`${pieces} pieces in ${seconds.toFixed(1)} s`);
  if (reason === "length") parts.push("cut at the limit");
  if (reason === "stopped") parts.push("stopped");
  return parts.join(" · ");
}

async function answer() {
  const message = { role: "assistant", content: "", reasoning: "", running: true };
  const body = wish();
  conversation.push(message);
  const view = show(message);
  toBottom();
  setRunning(new AbortController());
  let timings = null, reason = "", pieces = 0, begin = performance.now(), drawing = false;
  const draw = () => {
    drawing = false;
    const follow = atBottom();
    view.update();
    if (follow) toBottom();
  };
  try {
    const response = await ask("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: running.signal,
    });
    if (response.status === 401) needKey();
    if (!response.ok) throw new Error(await failureOf(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices?.[0];
      if (!choice) continue;
      if (pieces++ === 0) begin = performance.now();
      message.content += choice.delta?.content ?? "";
      message.reasoning += choice.delta?.reasoning_content ?? "";
      timings = event.timings ?? timings;
      reason = choice.finish_reason ?? reason;
      if (!drawing) requestAnimationFrame(draw);
      drawing = true;
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else message.failed = error instanceof TypeError ? "The server does not answer." : error.message;
  }
  delete message.running;
  message.note = note(timings, reason, (performance.now() - begin) / 1000, pieces);
  draw();
  save();
  setRunning(null);
  $("said").textContent = message.failed ? "The answer failed." : reason === "stopped" ? "Stopped." : "The answer is complete.";
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("messages").setAttribute("aria-busy", String(running !== null));
}

function stopAnswer() {
  running?.abort();
}

function send(text) {
  if (running || !text.trim()) return;
  $("empty").hidden = true;
  const last = document.querySelector(".message:last-child .foot");
  conversation.push({ role: "user", content: text.trim() });
  show(conversation.at(-1));
  last?.querySelectorAll("button").forEach((b) => b.textContent === "Again" && b.remove());
  save();
  answer();
}

function again() {
  if (running) return;
  conversation.pop();
  showAll();
  answer();
}

// --- what the page's controls do ------------------------------------------------------------------------------------

function fitPrompt() {
  const box = $("prompt");
  box.style.height = "auto";
  box.style.height = box.scrollHeight + "px";
}

function showView(view) {
  document.documentElement.dataset.view = view;
  for (const button of document.querySelectorAll(".views button"))
    button.setAttribute("aria-pressed", String(button.dataset.to === view));
  window.dispatchEvent(new Event("resize"));
}

function openSettings(field) {
  const form = $("settings-form");
  for (const input of form.elements) {
    if (!input.name) continue;
    if (input.type === "checkbox") input.checked = Boolean(settings[input.name]);
    else input.value = settings[input.name] ?? "";
  }
  $("settings").showModal();
  showDefaults();
  if (field) form.elements[field].focus();
}

// An empty field shows what the server takes instead.
async function showDefaults() {
  try {
    const defaults = (await (await ask("props")).json()).default_generation_settings.params;
    for (const input of $("settings-form").elements)
      if (input.type === "number" && input.name in defaults && input.name !== "seed") input.placeholder = defaults[input.name];
  } catch {}
}

function readSettings() {
  const next = {};
  for (const input of $("settings-form").elements) {
    if (!input.name) continue;
    if (input.type === "checkbox") next[input.name] = input.checked;
    else if (input.type === "number") next[input.name] = input.value === "" ? undefined : input.valueAsNumber;
    else next[input.name] = input.value;
  }
  settings = next;
  kept.write("settings", settings);
  window.dispatchEvent(new Event("settings"));
}

function needKey() {
  tell("The server asks for a key.", { bad: true, key: true });
}

// The line under the bar; no text takes it away.
function tell(text, { bad = false, key = false, progress = null } = {}) {
  $("notice").hidden = !text;
  $("notice").classList.toggle("bad", bad);
  if ($("notice-text").textContent !== text) $("notice-text").textContent = text;
  $("notice-key").hidden = !key;
  $("notice-progress").hidden = progress === null;
  if (progress !== null) $("notice-progress").value = progress;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return;
  send($("prompt").value);
  $("prompt").value = "";
  fitPrompt();
});
$("prompt").addEventListener("input", fitPrompt);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("stop").addEventListener("click", () => {
  stopAnswer();
  $("prompt").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open) stopAnswer();
});
$("starters").addEventListener("click", (event) => {
  if (event.target.tagName === "BUTTON") send(event.target.textContent);
});
$("new-chat").addEventListener("click", () => {
  stopAnswer();
  conversation = [];
  save();
  showAll();
  showView("chat");
  $("prompt").focus();
});
for (const button of document.querySelectorAll(".views button")) button.addEventListener("click", () => showView(button.dataset.to));
$("open-settings").addEventListener("click", () => openSettings());
$("notice-key").addEventListener("click", () => openSettings("key"));
$("settings").addEventListener("close", readSettings);
$("defaults").addEventListener("click", () => {
  const key = $("settings-form").elements.key.value;
  $("settings-form").reset();
  $("settings-form").elements.key.value = key;
});

showAll();
