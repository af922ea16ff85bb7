"use strict";
// The page of `kubectl fledged ui`. It only reads: from the plugin, which serves it on this machine.

/** States by their letter, with the name of their colour. */
const STATES = { "#": "ready", p: "pulling", ".": "pending", F: "failed", U: "unreachable", "-": "out" };
/** Order of rows: the worst first. */
const WORST = "FU.p-#";
const CELL = 12;
const LEFT = 150;

const $ = (id) => document.getElementById(id);
const map = $("map");
const view = $("scroll");
let matrix = { images: [], rows: [] };
let chosen = { row: 0, column: 0 };
let events = null;
let drawing = false;
let loading = 0;

async function get(path, query = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

function cache() {
  const [namespace, name] = $("cache").value.split("/");
  return { namespace, name };
}

function told(text) {
  $("state").textContent = text;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit + 1 < units.length) {
    count /= 1000;
    unit += 1;
  }
  return `${count.toFixed(unit && count < 100 ? 1 : 0)} ${units[unit]}`;
}

/** The page's text is never read as markup: names come from the cluster. */
function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function table(id, rows) {
  $(id).replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell) => element("td", cell)));
    return row;
  }));
}

// === the heat map: only the visible cells are drawn

function draw() {
  drawing = false;
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [view.clientWidth, view.clientHeight];
  map.width = width * scale;
  map.height = height * scale;
  map.style.width = `${width}px`;
  map.style.height = `${height}px`;
  $("spacer").style.height = `${matrix.rows.length * CELL}px`;
  $("spacer").style.width = `${LEFT + matrix.images.length * CELL}px`;
  const pen = map.getContext("2d");
  pen.scale(scale, scale);
  pen.clearRect(0, 0, width, height);
  pen.font = `${CELL - 2}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  const colours = Object.fromEntries(Object.entries(STATES).map(([letter, name]) => [letter, colour(name)]));
  const first = Math.floor(view.scrollTop / CELL);
  const left = Math.floor(view.scrollLeft / CELL);
  const columns = Math.min(matrix.images.length - left, Math.ceil((width - LEFT) / CELL));
  for (let row = first; row < Math.min(matrix.rows.length, first + Math.ceil(height / CELL) + 1); row++) {
    const y = row * CELL - view.scrollTop;
    const { node, states } = matrix.rows[row];
    pen.fillStyle = colour("text");
    pen.fillText(node, 2, y, LEFT - 6);
    for (let column = 0; column < columns; column++) {
      pen.fillStyle = colours[states[left + column]];
      pen.fillRect(LEFT + column * CELL, y, CELL - 1, CELL - 1);
    }
  }
  pen.strokeStyle = colour("text");
  pen.lineWidth = 2;
  pen.strokeRect(LEFT + (chosen.column - left) * CELL, chosen.row * CELL - view.scrollTop, CELL - 1, CELL - 1);
}

function redraw() {
  if (!drawing) {
    drawing = true;
    requestAnimationFrame(draw);
  }
}

function choose(row, column) {
  chosen = {
    row: Math.max(0, Math.min(matrix.rows.length - 1, row)),
    column: Math.max(0, Math.min(matrix.images.length - 1, column)),
  };
  const line = matrix.rows[chosen.row];
  if (!line) return;
  const top = chosen.row * CELL;
  if (top < view.scrollTop) view.scrollTop = top;
  if (top + CELL > view.scrollTop + view.clientHeight) view.scrollTop = top + CELL - view.clientHeight;
  const state = STATES[line.states[chosen.column]] || "out";
  $("cell").textContent = `${matrix.images[chosen.column]} on ${line.node}: ${state}`;
  redraw();
}

/** Says why a node lacks an image, or all that it lacks. */
async function explain(node, image) {
  const query = image ? { node, image } : { node };
  try {
    const answer = await get("api/why", query);
    const parts = [element("h3", image ? `${image} on ${node}` : node)];
    const links = element("p", "");
    links.append(link("node", node), image ? link("image", image) : "");
    parts.push(links);
    for (const sentence of answer.sentences) {
      parts.push(element("p", `${sentence.text}.`));
      if (sentence.said) parts.push(element("p", `${sentence.reason}: ${sentence.said}`));
      if (sentence.command) parts.push(element("code", sentence.command));
    }
    parts.push(...answer.notes.map((note) => element("p", `${note}.`)));
    $("why").replaceChildren(...parts);
  } catch (error) {
    told(error.message);
  }
}

function explainChosen() {
  const line = matrix.rows[chosen.row];
  if (line) explain(line.node, matrix.images[chosen.column]);
}

// === the page of a node and that of an image. The address names it: #NAMESPACE/NAME/node/NODE

/** ImageCache and page of the address. */
function address() {
  const [namespace, name, kind, of] = location.hash.slice(1).split("/").map(decodeURIComponent);
  return { cache: name ? `${namespace}/${name}` : "", kind, of };
}

function hash(...parts) {
  return `#${[...$("cache").value.split("/"), ...parts].map(encodeURIComponent).join("/")}`;
}

function link(kind, of) {
  const made = element("a", `${kind} ${of}`);
  made.href = hash(kind, of);
  return made;
}

/** Name and state of each image of a node, or of each node that an image may be on; the worst first. */
function pairs(kind, of) {
  if (kind === "node") {
    const line = matrix.rows.find((row) => row.node === of);
    return line ? matrix.images.map((image, column) => [image, line.states[column]]) : [];
  }
  const column = matrix.images.indexOf(of);
  return column < 0 ? [] : matrix.rows.map((row) => [row.node, row.states[column]]);
}

function page() {
  const { kind, of } = address();
  const shown = kind === "node" || kind === "image";
  $("page").hidden = !shown;
  $("overview").hidden = shown;
  if (!shown) return redraw();
  const all = pairs(kind, of).sort((one, other) => WORST.indexOf(one[1]) - WORST.indexOf(other[1]));
  const ready = all.filter(([, state]) => state === "#").length;
  const wanted = all.filter(([, state]) => state !== "-").length;
  $("page-title").textContent = `${kind === "node" ? "Node" : "Image"} ${of}`;
  $("page-of").textContent = kind === "node" ? "Image" : "Node";
  $("page-counts").textContent = all.length ? `${ready} of ${wanted} are present.` : `This ImageCache has no such ${kind}.`;
  $("back").href = hash();
  $("rows").replaceChildren(...all.map(([name, state]) => {
    const row = document.createElement("tr");
    const why = element("button", name);
    why.addEventListener("click", () => (kind === "node" ? explain(of, name) : explain(name, of)));
    const cell = document.createElement("td");
    cell.append(why);
    const square = document.createElement("i");
    square.style.background = `var(--${STATES[state] || "out"})`;
    const told = document.createElement("td");
    told.append(square, STATES[state] || "out");
    row.append(cell, told);
    return row;
  }));
}

/** Shows what the address names. */
function show() {
  const { cache: wanted, kind, of } = address();
  if (wanted && wanted !== $("cache").value && [...$("cache").options].some((option) => option.value === wanted)) {
    $("cache").value = wanted;
    load().then(follow, (error) => told(error.message));
  }
  page();
  if ($("page").hidden) return;
  $("page-title").focus();
  if (kind === "node") explain(of);
}

// === what is shown

async function load() {
  const asked = ++loading;
  const [read, registries] = await Promise.all([get("api/matrix", cache()), get("api/registries")]);
  if (asked !== loading) return;
  const worst = (row) => Math.min(...[...new Set(row.states)].map((state) => WORST.indexOf(state)));
  read.rows = read.rows.map((row) => ({ ...row, worst: worst(row) }));
  read.rows.sort((one, other) => one.worst - other.worst || (one.node < other.node ? -1 : 1));
  matrix = read;
  const counts = {};
  for (const row of matrix.rows) for (const state of row.states) counts[state] = (counts[state] || 0) + 1;
  $("legend").replaceChildren(...Object.entries(STATES).map(([letter, name]) => {
    const entry = document.createElement("span");
    const square = document.createElement("i");
    square.style.background = `var(--${name})`;
    entry.append(square, `${name} ${counts[letter] || 0}`);
    return entry;
  }));
  const { peers, registry, wasted } = registries.moved;
  $("moved").textContent = peers + registry === 0
    ? "No node has shared layers yet."
    : `${bytes(peers)} of layers came from other nodes and ${bytes(registry)} from registries; ${bytes(wasted)} were of no use.`;
  table("registries", registries.rows.map((one) => [
    one.host, one.inFlight, one.budget, one.waitingNodes, one.limitedSeconds === null ? "never" : `${one.limitedSeconds} s ago`,
  ]));
  choose(chosen.row, chosen.column);
  page();
}

function progress(step) {
  $("counts").textContent = `${step.ready} of ${step.desired} images are present`;
  $("bytes").hidden = !step.total;
  $("bytes").max = step.total || 1;
  $("bytes").value = step.done;
  const left = step.leftSeconds === null ? "" : `, ${step.leftSeconds} s left`;
  $("speed").textContent = step.total ? `${bytes(step.done)} of ${bytes(step.total)}, ${bytes(step.perSecond)}/s${left}` : "";
  table("pulls", step.pulls.map((pull) => [pull.node, pull.image, `${bytes(pull.done)} of ${bytes(pull.total)}`]));
}

function follow() {
  events?.close();
  let ready = -1;
  events = new EventSource(`events?${new URLSearchParams(cache())}`);
  events.onopen = () => told("Live.");
  events.onmessage = (message) => {
    const step = JSON.parse(message.data);
    progress(step);
    if (step.ready !== ready) {
      ready = step.ready;
      load().catch((error) => told(error.message));
    }
  };
  // The browser connects again by itself.
  events.onerror = () => told("The connection is broken; it is tried again.");
}

async function start() {
  const caches = await get("api/caches");
  $("cache").replaceChildren(...caches.map((name) => element("option", name)));
  const wanted = address().cache;
  if (caches.includes(wanted)) $("cache").value = wanted;
  if (!caches.length) return told("There is no ImageCache.");
  await load();
  follow();
  show();
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-20, 0], PageDown: [20, 0] };

view.addEventListener("scroll", redraw, { passive: true });
view.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (move) choose(chosen.row + move[0], chosen.column + move[1]);
  else if (event.key === "Enter") explainChosen();
  else if (event.key === "n") location.hash = hash("node", matrix.rows[chosen.row]?.node ?? "");
  else if (event.key === "i") location.hash = hash("image", matrix.images[chosen.column] ?? "");
  else return;
  event.preventDefault();
});
view.addEventListener("click", (event) => {
  const box = view.getBoundingClientRect();
  const row = Math.floor((event.clientY - box.top + view.scrollTop) / CELL);
  const x = event.clientX - box.left;
  if (x < LEFT) {
    choose(row, chosen.column);
    location.hash = hash("node", matrix.rows[chosen.row]?.node ?? "");
  } else {
    choose(row, Math.floor((x - LEFT) / CELL) + Math.floor(view.scrollLeft / CELL));
    explainChosen();
  }
});
$("cache").addEventListener("change", () => {
  location.hash = hash();
  load().then(follow, (error) => told(error.message));
});
addEventListener("hashchange", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
new ResizeObserver(redraw).observe(view);
start().catch((error) => told(error.message));
