// The machine: asks /live about once a second while somebody looks, and draws the differences.
"use strict";

const POLL_MS = 1000;
const SAMPLES = 120;
const TIERS = ["disk", "ram", "vram", "arriving"];
const TIER_WORDS = ["on disk", "in RAM", "in VRAM", "on its way from disk"];
// From not used for long to used just now.
const TIER_COLOURS = [
  [[34, 42, 52], [88, 106, 128]],
  [[86, 34, 10], [255, 138, 51]],
  [[110, 86, 10], [255, 226, 110]],
  [[10, 96, 112], [60, 214, 236]],
];
const STAGES = { attention: "attention", experts: "experts", device_wait: "waiting for devices", disk_wait: "waiting for the disk", rest: "rest" };

let last = null;      // the answer before
let map = null;       // {layers, experts, cells}
let at = null;        // the expert that is read out: {row, column}
const samples = [];   // {rate, hits, useful}, shares null when nothing was asked for

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const percent = (share) => (100 * share).toFixed(share > 0.995 || share < 0.1 ? 1 : 0).replace(".0", "") + " %";
const share = (part, whole) => (whole > 0 ? clamp(part / whole, 0, 1) : null);
const gigabytes = (bytes) => (bytes < 1e9 ? (bytes / 1e6).toFixed(0) + " MB" : (bytes / 1e9).toFixed(bytes < 1e11 ? 1 : 0) + " GB");
const number = (x) => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toFixed(2));

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A canvas has as many pixels as the screen shows of it.
function prepare(canvas, height) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  if (height) canvas.style.height = height + "px";
  const pixels = [Math.round(width * scale), Math.round((height || canvas.clientHeight) * scale)];
  if (canvas.width !== pixels[0]) canvas.width = pixels[0];
  if (canvas.height !== pixels[1]) canvas.height = pixels[1];
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  return { context, scale, width: canvas.width, height: canvas.height };
}

// --- the map of the experts ---------------------------------------------------------------------------------------

function readMap(json) {
  const text = atob(json.bytes);
  return { layers: json.layers, experts: json.experts, cells: Uint8Array.from(text, (c) => c.charCodeAt(0)) };
}

function drawMap() {
  const canvas = $("map");
  if (!map || canvas.clientWidth === 0) return;
  const rows = map.layers.length;
  const cell = clamp(canvas.clientWidth / map.experts, 4, 18);
  const { context, scale, width, height } = prepare(canvas, Math.round(rows * cell));
  const image = new ImageData(map.experts, rows);
  map.cells.forEach((byte, i) => {
    const [cold, hot] = TIER_COLOURS[byte >> 6];
    const heat = Math.pow((byte & 63) / 63, 1.4);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = cold[c] + (hot[c] - cold[c]) * heat;
    image.data[4 * i + 3] = 255;
  });
  const small = new OffscreenCanvas(map.experts, rows);
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
  drawGaps(context, rows, width, height, scale);
  drawCursor(context, rows, width, height, scale);
}

// Where cells are large enough, they stand apart.
function drawGaps(context, rows, width, height, scale) {
  context.fillStyle = colour("--window");
  if (width / map.experts >= 5 * scale)
    for (let i = 1; i < map.experts; i++) context.fillRect(Math.round((i * width) / map.experts) - scale / 2, 0, scale, height);
  if (height / rows >= 4 * scale)
    for (let i = 1; i < rows; i++) context.fillRect(0, Math.round((i * height) / rows) - scale / 2, width, scale);
}

function drawCursor(context, rows, width, height, scale) {
  if (!at) return;
  const w = width / map.experts, h = height / rows, edge = 2 * scale;
  context.strokeStyle = "#fff";
  context.lineWidth = edge;
  context.strokeRect(at.column * w - edge / 2, at.row * h - edge / 2, w + edge, h + edge);
}

function readOut() {
  if (!map || !at) return;
  const byte = map.cells[at.row * map.experts + at.column];
  const heat = byte & 63;
  const doublings = (63 - heat) / 5;
  const passes = Math.round(Math.pow(2, doublings)) - 1;
  const used = heat === 0 ? "not used for long, or never" : passes < 1 ? "used by the last token" : `last used about ${passes} passes ago`;
  $("readout").textContent = `Layer ${map.layers[at.row]}, expert ${at.column}: ${TIER_WORDS[byte >> 6]}, ${used}.`;
}

function showMap() {
  const counts = [0, 0, 0, 0];
  for (const byte of map.cells) counts[byte >> 6]++;
  TIERS.forEach((tier, i) => ($("count-" + tier).textContent = counts[i].toLocaleString("en")));
  const layers = map.layers;
  $("map-about").textContent = `${layers.length} layers (${layers[0]} to ${layers.at(-1)}, downwards) of ${map.experts} experts`;
  const total = map.cells.length;
  $("map").setAttribute("aria-label", `Map of ${total} experts: ${counts[2]} in VRAM, ${counts[1]} in RAM, ${counts[0]} on disk`);
  drawMap();
  readOut();
}

function point(event) {
  if (!map) return;
  const box = $("map").getBoundingClientRect();
  at = {
    row: clamp(Math.floor(((event.clientY - box.top) / box.height) * map.layers.length), 0, map.layers.length - 1),
    column: clamp(Math.floor(((event.clientX - box.left) / box.width) * map.experts), 0, map.experts - 1),
  };
  drawMap();
  readOut();
}

function moveCursor(event) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (!map || !(event.key in steps)) return;
  event.preventDefault();
  const [down, right] = steps[event.key];
  const stride = event.shiftKey ? 10 : 1;
  at = at
    ? { row: clamp(at.row + down * stride, 0, map.layers.length - 1), column: clamp(at.column + right * stride, 0, map.experts - 1) }
    : { row: 0, column: 0 };
  drawMap();
  readOut();
}

// --- numbers --------------------------------------------------------------------------------------------------------

function difference(now, before) {
  const seconds = now.seconds - before.seconds;
  const d = { seconds, stages: {}, generated: now.generated_tokens - before.generated_tokens, passes: now.passes - before.passes, prompt: now.prompt_tokens - before.prompt_tokens };
  for (const stage in STAGES) d.stages[stage] = now.stage_seconds[stage] - before.stage_seconds[stage];
  for (const name in now.experts) d[name] = now.experts[name] - before.experts[name];
  return d;
}

function showTiles(live, d) {
  $("rate").textContent = d.generated > 0 ? number(d.generated / d.seconds) : "0";
  $("rate-note").textContent = d.prompt > 0 ? `+ ${number(d.prompt / d.seconds)} of prompts` : d.generated > 0 ? "generated" : "nothing runs";
  const hits = share(d.hits, d.requests) ?? share(live.experts.hits, live.experts.requests);
  $("hits").textContent = hits === null ? "–" : percent(hits);
  $("hits-note").textContent = d.requests > 0 ? "this second" : "so far";
  $("disk").textContent = percent(share(d.disk_busy_seconds, d.seconds) ?? 0);
  $("disk-note").textContent = d.disk_bytes > 0 ? `busy: ${gigabytes(d.disk_bytes / d.seconds)}/s` : "busy";
  const busy = live.slots.filter((s) => s !== "free").length;
  $("slots").textContent = `${busy}/${live.slots.length}`;
  $("slots-note").textContent = live.waiting > 0 ? `busy, ${live.waiting} waiting` : "busy";
}

// Per generated token when there were some, of the second otherwise. What was shown last stays while nothing runs.
function showStrip(live, d) {
  const total = Object.values(d.stages).reduce((a, b) => a + b, 0);
  if (total <= 0) return;
  const perToken = d.generated > 0 && d.prompt === 0;
  const unit = perToken ? d.generated : d.seconds;
  $("strip-about").textContent = perToken ? `${number((1e3 * total) / unit)} ms per token` : `${number((1e3 * total) / unit)} ms of each second`;
  const parts = [], words = [];
  for (const [stage, label] of Object.entries(STAGES)) {
    if (stage === "device_wait" && live.memory.devices === 0) continue;
    const part = make("i", stage);
    part.style.width = (100 * d.stages[stage]) / total + "%";
    parts.push(part);
    const ms = number((1e3 * d.stages[stage]) / unit) + " ms";
    words.push(`${label} ${ms}`);
    const item = make("li", "", make("i", "swatch " + stage), label + " ", make("b", "", ms));
    parts.push(item);
  }
  $("strip").replaceChildren(...parts.filter((p) => p.tagName === "I"));
  $("strip-legend").replaceChildren(...parts.filter((p) => p.tagName === "LI"));
  $("strip").setAttribute("aria-label", "Time per resource: " + words.join(", "));
}

function meter(name, value, part) {
  const element = make("div", "meter", make("div", "name", make("span", "", name), make("span", "", value)));
  if (part !== null) {
    const fill = make("i");
    fill.style.width = 100 * part + "%";
    element.append(make("div", "track", fill));
  }
  return element;
}

function rate(name, bytes, limit) {
  if (limit === null) return meter(name, `${gigabytes(bytes)}/s`, null);
  return meter(name, `${gigabytes(bytes)}/s of ${gigabytes(limit)}/s`, Math.min(1, bytes / limit));
}

function showMeters(live, d) {
  const resident = map ? map.cells.reduce((n, byte) => n + (byte >> 6 === 1), 0) : 0;
  const onDevices = map ? map.cells.reduce((n, byte) => n + (byte >> 6 === 2), 0) : 0;
  const m = live.memory;
  const slots = Math.min(m.expert_slots + m.vram_slots, m.expert_total);
  const busy = share(d.disk_busy_seconds, d.seconds) ?? 0;
  $("meters").replaceChildren(
    meter("Disk busy", percent(busy), busy),
    rate("Disk", d.disk_bytes / d.seconds, live.limits.disk),
    // Experts and the weights of every token are read; what disk and links move is written or read there as well.
    rate("DRAM", (d.ram_bytes + d.passes * m.resident_bytes + d.disk_bytes + d.link_bytes) / d.seconds, live.limits.dram),
    ...(m.vram_slots > 0 ? [rate("PCIe, both ways", d.link_bytes / d.seconds, live.limits.link)] : []),
    meter("Experts with a slot", `${slots.toLocaleString("en")} of ${m.expert_total.toLocaleString("en")}`, share(slots, m.expert_total)),
    meter("Expert slots in RAM", `${resident.toLocaleString("en")} of ${m.expert_slots.toLocaleString("en")} filled`, share(resident, m.expert_slots)),
    ...(m.vram_slots > 0 ? [
      meter("Expert slots in VRAM", `${onDevices.toLocaleString("en")} of ${m.vram_slots.toLocaleString("en")} filled, ${gigabytes(m.vram_bytes)}`, share(onDevices, m.vram_slots)),
    ] : []),
    meter("Weights of every token", gigabytes(m.resident_bytes), null),
    meter("KV cache", `${gigabytes(m.kv_bytes)}, ${live.context.toLocaleString("en")} tokens a slot`, null));
  const unknown = live.limits.disk === null || live.limits.dram === null;
  $("limits").textContent = unknown ? "What disk and memory can do is not known: run stoker tune --measure on this machine and restart the server." : "";
  $("limits").hidden = !unknown;
  const gain = live.prefetch.gain ? `, ${live.prefetch.gain > 0 ? "+" : ""}${(100 * live.prefetch.gain).toFixed(1)} % tokens/s` : "";
  const { done, total } = live.warmth;
  const all = done < total ? `Experts are being read into memory: ${done.toLocaleString("en")} of ${total.toLocaleString("en")}.` : "All experts fit: nothing is prefetched.";
  $("prefetch").textContent = m.all_fit ? all : `Prefetch is ${live.prefetch.state}${gain}`;
}

// --- charts ---------------------------------------------------------------------------------------------------------

function drawLine(canvas, values, top, stroke, filled) {
  const { context, scale, width, height } = canvas;
  const x = (i) => width - ((values.length - 1 - i) / (SAMPLES - 1)) * width;
  const y = (v) => height - scale - (v / top) * (height - 3 * scale);
  context.strokeStyle = stroke;
  context.lineWidth = 1.75 * scale;
  context.lineJoin = context.lineCap = "round";
  context.beginPath();
  let open = false, first = 0;
  values.forEach((v, i) => {
    if (v === null) return void (open = false);
    if (!open) context.moveTo(x((first = i)) - 0.01, y(v));  // one alone is a dot
    context.lineTo(x(i), y(v));
    open = true;
  });
  context.stroke();
  if (!filled || !open) return;
  context.lineTo(x(values.length - 1), height);
  context.lineTo(x(first), height);
  context.globalAlpha = 0.14;
  context.fillStyle = stroke;
  context.fill();
  context.globalAlpha = 1;
}

function drawGrid({ context, scale, width, height }) {
  context.fillStyle = colour("--line");
  for (const part of [0, 0.5, 1]) context.fillRect(0, Math.round(part * (height - scale)), width, scale);
}

function drawCharts() {
  if ($("rate-chart").clientWidth === 0) return;
  const peak = Math.max(0, ...samples.map((h) => h.rate));
  $("rate-peak").textContent = peak > 0 ? `peak ${number(peak)}` : "";
  const rate = prepare($("rate-chart"));
  drawGrid(rate);
  drawLine(rate, samples.map((h) => h.rate), Math.max(peak, 1e-9), colour("--accent"), true);
  const shares = prepare($("share-chart"));
  drawGrid(shares);
  drawLine(shares, samples.map((h) => h.useful), 1, colour("--useful"), false);
  drawLine(shares, samples.map((h) => h.hits), 1, colour("--hits"), false);
}

function remember(d) {
  samples.push({ rate: d.generated / d.seconds, hits: share(d.hits, d.requests), useful: share(d.useful_bytes, d.hinted_bytes) });
  if (samples.length > SAMPLES) samples.shift();
  const useful = samples.map((h) => h.useful).filter((u) => u !== null).at(-1);
  $("useful").textContent = useful === undefined ? "–" : percent(useful);
}

// --- asking ---------------------------------------------------------------------------------------------------------

function showLive(live) {
  $("model").textContent = live.model;
  if (live.map) map = readMap(live.map);
  if (live.map) showMap();
  const before = last;
  last = live;
  if (!before || live.seconds <= before.seconds || live.generated_tokens < before.generated_tokens) return;
  const d = difference(live, before);
  remember(d);
  showTiles(live, d);
  showStrip(live, d);
  showMeters(live, d);
  drawCharts();
}

async function showLoading() {
  const health = await (await ask("health")).json();
  const p = health.progress;
  if (p) tell(p.total_bytes > 0 ? `Loading ${p.stage}: ${gigabytes(p.done_bytes)} of ${gigabytes(p.total_bytes)}` : "Loading the model", { progress: p.share });
  else if (health.error) tell(health.error.message, { bad: true });
}

async function poll() {
  try {
    const response = await ask("live");
    if (response.status === 401) return needKey();
    if (response.status === 503) return await showLoading();
    if (!response.ok) return;
    showLive(await response.json());
    tell("");
  } catch {
    tell("The server does not answer.", { bad: true });
  }
}

async function watch() {
  if (!document.hidden) await poll();
  setTimeout(watch, POLL_MS);
}

$("map").addEventListener("pointermove", point);
$("map").addEventListener("pointerdown", point);
$("map").addEventListener("keydown", moveCursor);
$("map").addEventListener("pointerleave", () => {
  at = null;
  drawMap();
  $("readout").textContent = "Brighter is used more recently. Point at an expert, or move with the arrow keys.";
});
window.addEventListener("resize", () => {
  drawMap();
  drawCharts();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawMap();
  drawCharts();
});
window.addEventListener("settings", poll);
watch();
