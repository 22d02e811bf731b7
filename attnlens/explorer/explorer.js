// The explorer: one generation, step by step, or several side by side. An ES module without
// dependencies: the front of a page (`start`) and of a Jupyter widget (the default export).
// Texts come from a model or a file: they reach the page as text nodes and attributes alone.

const SVG = "http://www.w3.org/2000/svg";
/** Colours of Okabe and Ito, which the colour-blind can tell apart; dashes tell them apart, too. */
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];
const DASHES = ["", "6 3", "2 2", "8 3 2 3", "1 3", "10 4", "4 4"];
/** Of the heat over a picture: rare in pictures. */
const HEAT = [208, 0, 111];
/** Stops of the map cividis, which reads the same with every kind of colour vision. */
const CIVIDIS = [[0, 32, 76], [42, 63, 109], [87, 93, 109], [124, 123, 120], [166, 156, 117], [211, 192, 100], [255, 234, 70]];
/** From negative to positive. */
const DIVERGING = [[33, 102, 172], [146, 197, 222], [247, 247, 247], [253, 174, 97], [179, 88, 6]];
/** Longest side of the heat of a picture that is encoded in several grids, in cells. */
const RASTER = 240;
const CHART_HEIGHT = 220;
const MORE_ROWS = 200;

/** An element with properties, attributes and children; strings become text nodes. */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  return fill(element, properties, children);
}

function makeSvg(name, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

function fill(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "text") element.textContent = value;
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Characters that nothing shows, or that turn the text around, as visible code points. */
function visible(text) {
  return text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g,
    (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** A token on one line, cut where it is long. */
function oneLine(text, longest = 60) {
  const shown = visible(text).replace(/\n/g, "↵");
  return shown.length > longest ? `${shown.slice(0, longest - 1)}…` : shown;
}

/** Four significant digits; a dash where there is no value. */
function format(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "–";
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** The mean of the values that are known; NaN of none. */
function meanOfKnown(values) {
  let sum = 0, count = 0;
  for (const value of values) if (!Number.isNaN(value)) { sum += value; count += 1; }
  return count ? sum / count : NaN;
}

function largest(values) {
  let found = 0;
  for (const value of values) if (value > found) found = value;
  return found;
}

/** A colour between stops, for a fraction from 0 to 1. */
function between(stops, fraction) {
  const place = clamp(fraction, 0, 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * (place - low)));
}

// Data

/** An array as it was packed: numbers, or codes of 8 bits with their scales. */
class Table {
  constructor(shape, values, levels = 0, scale = null, scaleAxes = []) {
    this.shape = shape;
    this.values = values;
    this.levels = levels;
    this.scale = scale;
    this.strides = stridesOf(shape);
    this.scaleStrides = [0, 0, 0, 0];
    const own = stridesOf(scaleAxes.map((axis) => shape[axis]));
    scaleAxes.forEach((axis, i) => { this.scaleStrides[axis] = own[i]; });
  }

  at(a, b = 0, c = 0, d = 0) {
    const s = this.strides;
    const value = this.values[a * s[0] + b * (s[1] ?? 0) + c * (s[2] ?? 0) + d * (s[3] ?? 0)];
    if (!this.scale) return value;
    if (value === 255) return NaN;
    const t = this.scaleStrides;
    return value * this.scale[a * t[0] + b * t[1] + c * t[2] + d * t[3]] / this.levels;
  }
}

function stridesOf(shape) {
  const strides = new Array(shape.length).fill(1);
  for (let i = shape.length - 2; i >= 0; i -= 1) strides[i] = strides[i + 1] * shape[i + 1];
  return strides;
}

/** Unpacks the arrays of a payload, each once and only when it is asked for. */
class Store {
  constructor(blobs) {
    this.blobs = blobs;
    this.tables = new Map();
  }

  table(entry) {
    if (!entry) return Promise.resolve(null);
    if (!this.tables.has(entry.blob)) this.tables.set(entry.blob, this.unpack(entry));
    return this.tables.get(entry.blob);
  }

  async unpack(entry) {
    const bytes = await this.inflate(this.blobs[entry.blob]);
    if (entry.type === "u1") {
      const scale = await this.table(entry.scale);
      return new Table(entry.shape, bytes, entry.levels, scale.values, entry.scale_axes);
    }
    const Kind = { f4: Float32Array, i4: Int32Array }[entry.type];
    return new Table(entry.shape, new Kind(bytes.buffer, 0, bytes.byteLength / 4));
  }

  async inflate(text) {
    const packed = Uint8Array.fromBase64?.(text) ?? bytesOf(text);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
}

/** Base64 as bytes, where the browser has no function for it. */
function bytesOf(text) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** One run: its texts, and its arrays as series and values of what is chosen. */
class Run {
  constructor(run, payload, store) {
    Object.assign(this, run);
    this.payload = payload;
    this.store = store;
    this.count = run.steps.length;
    this.special = new Set(run.special);
    this.cache = new Map();
    this.heat = null;
    this.wanted = null;
  }

  async open() {
    const load = (entry) => this.store.table(entry);
    const each = async (entries) => Object.fromEntries(await Promise.all(Object.entries(entries).map(
      async ([name, entry]) => [name, { layer: await load(entry.by_layer), head: null, packed: entry.by_head }])));
    this.keysTable = await load(this.keys);
    this.massTable = await load(this.mass);
    this.restTable = await load(this.without_sink);
    this.shareTables = await each(this.shares);
    this.copiedTables = this.shares_with_copied ? await each(this.shares_with_copied) : {};
    this.splitTables = {};
    for (const term of ["log_odds", "counts", "preference"]) if (this.split) this.splitTables[term] = await load(this.split[term]);
    this.lookingTable = this.looking ? await load(this.looking.values) : null;
    this.dependenceTables = {};
    for (const name of ["kl", "hellinger", "log_ratio"]) if (this.dependence) this.dependenceTables[name] = await load(this.dependence[name]);
    this.views = await Promise.all(this.pictures.map(async (picture) => ({ ...picture, boxTable: await load(picture.boxes) })));
  }

  cached(key, compute) {
    if (!this.cache.has(key)) this.cache.set(key, compute());
    return this.cache.get(key);
  }

  /** Places of the chosen layers. */
  layerPlaces(chosen) {
    return chosen.layers ?? this.layers.map((_, place) => place);
  }

  tables(chosen) {
    return (chosen.copied && this.copiedTables[chosen.definition]) || this.shareTables[chosen.definition];
  }

  /** Attention to the image at every step, under the chosen definition. */
  share(chosen) {
    const key = `share ${chosen.definition} ${chosen.layers} ${chosen.head} ${chosen.copied}`;
    return this.cached(key, () => {
      const { layer, head } = this.tables(chosen);
      const places = this.layerPlaces(chosen);
      if (chosen.head !== null && head) return this.series((t) => head.at(t, places[0], chosen.head));
      return this.series((t) => meanOfKnown(places.map((l) => layer.at(t, l))));
    });
  }

  series(value) {
    return Float64Array.from({ length: this.count }, (_, t) => value(t));
  }

  /** Mass of a segment at every step; without the sink, of what is left: not of one head, whose 8 bits are too few. */
  segment(chosen, index) {
    const key = `segment ${index} ${chosen.layers} ${chosen.head} ${chosen.sink}`;
    return this.cached(key, () => {
      const places = this.layerPlaces(chosen);
      const heads = chosen.head === null ? [...Array(this.heads).keys()] : [chosen.head];
      if (!chosen.sink) return this.series((t) => (chosen.head === null ? meanOfKnown(places.map((l) => this.restTable.at(t, l, index))) : NaN));
      return this.series((t) => meanOfKnown(places.map((l) => meanOfKnown(heads.map((h) => this.massTable.at(t, l, h, index))))));
    });
  }

  splitOf(chosen, term) {
    const places = this.layerPlaces(chosen);
    return this.cached(`split ${term} ${chosen.layers}`,
      () => this.series((t) => meanOfKnown(places.map((l) => this.splitTables[term].at(t, l)))));
  }

  dependenceOf(name, reference) {
    return this.cached(`dependence ${name} ${reference}`, () => this.series((t) => this.dependenceTables[name].at(reference, t)));
  }

  /** The value of a head at steps [from, to]: of the chosen definition, or visual mass where that has none by head. */
  headValue(chosen, from, to, layer, head) {
    const table = this.tables(chosen).head;
    const visual = this.payload.segments.indexOf("visual");
    let sum = 0, count = 0;
    for (let t = from; t <= to; t += 1) {
      const value = table ? table.at(t, layer, head) : this.massTable.at(t, layer, head, visual);
      if (!Number.isNaN(value)) { sum += value; count += 1; }
    }
    return count ? sum / count : NaN;
  }

  /** Unpack what is shown of each head under the chosen definition. */
  async openHeads(chosen) {
    const tables = this.tables(chosen);
    tables.head ??= await this.store.table(tables.packed);
  }

  /** Load the map of what is chosen into `heat`; say what is shown in its place where there is none. */
  chooseHeat(chosen) {
    const key = `${chosen.layers} ${chosen.head}`;
    if (!this.maps) return null;
    if (this.wanted?.key !== key) this.wanted = { key, done: this.loadHeat(chosen, key) };
    return this.wanted.done;
  }

  async loadHeat(chosen, key) {
    const find = (kind, layer, head) => this.maps.sources.find((s) => s.kind === kind && (kind === "mean" || s.layer === layer) && (kind !== "head" || s.head === head));
    let sources = [find("mean")], note = "mean over layers and heads";
    if (chosen.layers) {
      const names = chosen.layers.map((place) => this.layers[place]);
      const ofHead = chosen.head === null ? null : find("head", names[0], chosen.head);
      const ofLayers = names.map((layer) => find("layer", layer)).filter(Boolean);
      if (ofHead) [sources, note] = [[ofHead], `layer ${names[0]}, head ${chosen.head}`];
      else if (ofLayers.length === names.length) {
        [sources, note] = [ofLayers, `layer${names.length > 1 ? "s" : ""} ${names.join(", ")}, mean over heads`];
        if (chosen.head !== null) note += `: the map of head ${chosen.head} is not in this page (map_heads=[(${names[0]}, ${chosen.head})] records it)`;
      } else note += ": the maps of these layers are not in this page";
    }
    const load = (name) => Promise.all(sources.map((source) => this.store.table(source[name])));
    const [tables, totals] = await Promise.all([load("weights"), load("total")]);
    if (this.wanted.key === key) this.heat = { note, tables, totals, most: null };
  }

  weight(t, visual) {
    let sum = 0;
    for (const table of this.heat.tables) sum += table.at(t, visual);
    return sum / this.heat.tables.length;
  }

  /** Weight of each visual token, mean over steps [from, to]. */
  weights(from, to) {
    const found = new Float64Array(this.maps.visual);
    for (let t = from; t <= to; t += 1) for (let v = 0; v < found.length; v += 1) found[v] += this.weight(t, v);
    return found.map((sum) => sum / (to - from + 1));
  }

  /** Weight on the whole image, mean over steps [from, to]; kept exactly, as small weights may be rounded to none. */
  total(from, to) {
    return meanOfKnown(this.heat.totals.flatMap((table) => Array.from(table.values.subarray(from, to + 1))));
  }

  /** The largest weight of a visual token at any step. */
  mostWeight() {
    if (this.heat.most === null) {
      this.heat.most = 0;
      for (let t = 0; t < this.count; t += 1) for (let v = 0; v < this.maps.visual; v += 1) {
        const weight = this.weight(t, v);
        if (weight > this.heat.most) this.heat.most = weight;
      }
    }
    return this.heat.most;
  }

  /** Weight on one visual token at every step. */
  patch(visual) {
    return this.series((t) => this.weight(t, visual));
  }

  /** The first step at which a definition has a value. */
  firstKnown(definition) {
    return Math.max(this.share({ ...FIRST, definition }).findIndex(Number.isFinite), 0);
  }

  /** Place of the response token that owns a step, and the step that a token owns. */
  tokenOf(t, owner) {
    return owner === "query" ? t - 1 : t;
  }

  stepOf(token, owner) {
    return clamp(owner === "query" ? token + 1 : token, 0, this.count - 1);
  }
}

// State

const FIRST = {
  run: 0, other: -1, from: 0, to: 0, pinned: false, definition: "", layers: null, head: null, copied: false, chart: "share",
  stacked: false, sink: true, sort: "index", opacity: 70, scale: "step", smooth: false, patch: null,
};

/** The state as the hash of an address: what differs from the first view. */
export function toHash(state, first) {
  const parts = new URLSearchParams();
  for (const key of Object.keys(FIRST)) {
    const value = state[key];
    if (JSON.stringify(value) !== JSON.stringify(first[key])) parts.set(key, Array.isArray(value) ? value.join(".") : String(value));
  }
  return parts.toString();
}

/** Read a hash; what makes no sense for these runs is left as it was first. */
export function fromHash(hash, first, runs, definitions) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...first };
  const whole = (key, low, high) => {
    const value = Number(parts.get(key));
    if (parts.get(key) !== null && parts.get(key) !== "" && Number.isInteger(value) && value >= low && value <= high) state[key] = value;
  };
  const oneOf = (key, values) => { if (values.includes(parts.get(key))) state[key] = parts.get(key); };
  const flag = (key) => { if (parts.has(key)) state[key] = parts.get(key) === "true"; };
  whole("run", 0, runs.length - 1);
  whole("other", -1, runs.length - 1);
  const run = runs[state.run];
  whole("from", 0, run.count - 1);
  state.to = state.from;
  whole("to", state.from, run.count - 1);
  oneOf("definition", definitions);
  const layers = (parts.get("layers") ?? "").split(".").filter((text) => text !== "").map(Number);
  if (layers.length && layers.every((l) => Number.isInteger(l) && l >= 0 && l < run.layers.length)) state.layers = layers;
  if (state.layers?.length === 1) whole("head", 0, run.heads - 1);
  if (run.maps) whole("patch", 0, run.maps.visual - 1);
  oneOf("chart", ["share", "segments", "split", "dependence", "patch"]);
  oneOf("sort", ["index", "mass", "looking"]);
  oneOf("scale", ["run", "step"]);
  whole("opacity", 0, 100);
  for (const key of ["pinned", "copied", "stacked", "sink", "smooth"]) flag(key);
  return state;
}

// Views: each draws what the state says, and asks the page to change it.

/** The answer of one run as tokens. */
class AnswerView {
  constructor(page, run, label) {
    this.page = page;
    this.run = run;
    this.label = label;
    this.spans = run.predicted.map((text, i) => this.token(text, i));
    this.body = make("div", {
      class: "answer", tabindex: 0, role: "listbox", "aria-multiselectable": "true", dir: "auto",
      "aria-label": `Answer${label ? ` of ${visible(label)}` : ""}. Arrow keys move the cursor, with Shift they take a span, Enter pins.`,
      onkeydown: (event) => page.moveByKey(event),
      onpointermove: (event) => page.hover(this.placeOf(event)),
      onpointerdown: (event) => page.press(event, this.placeOf(event)),
    });
    // the first step that sees what was inserted is fed the token that comes after it
    const events = new Map();
    for (const event of run.events) events.set(event.step - 1, [...(events.get(event.step - 1) ?? []), event]);
    run.steps.forEach((step, i) => {
      for (const event of events.get(step) ?? []) {
        const what = `▼ ${oneLine(event.name)}${event.inserted ? ` +${event.inserted}` : ""}`;
        this.body.append(make("span", { class: "event", title: `${oneLine(event.name)} acts here; tokens inserted: ${event.inserted}`, text: what }));
      }
      this.body.append(this.spans[i]);
    });
    this.marked = [];
    this.legend = make("p", { class: "legend" });
    this.element = make("section", { class: "panel", "aria-label": "answer" },
      make("h2", { text: label ? `Answer: ${oneLine(label)}` : "Answer" }), this.body, this.legend);
  }

  token(text, i) {
    const region = this.regionOf(this.run.steps[i]);
    const span = make("span", {
      class: `token${this.run.special.has(i) ? " special" : ""}${region ? ` region region-${this.page.regionPlace(region)}` : ""}`,
      "data-place": i, role: "option", id: `${this.page.id}-${this.label}-${i}`.replace(/[^\w-]/g, "_"), "aria-selected": "false",
    });
    span.textContent = visible(text).replace(/\n/g, "↵\n");
    return span;
  }

  /** The innermost region of a predicted token. */
  regionOf(step) {
    const around = this.run.regions.filter((r) => r.start <= step && step < r.stop);
    return around.sort((a, b) => (a.stop - a.start) - (b.stop - b.start))[0]?.name ?? "";
  }

  placeOf(event) {
    const span = event.target.closest?.(".token");
    return span ? this.run.stepOf(Number(span.dataset.place), this.page.owner()) : null;
  }

  paint(chosen) {
    const owner = chosen.patch !== null ? "query" : this.page.owner();
    const values = chosen.patch !== null ? this.run.patch(chosen.patch) : this.run.share(chosen);
    const most = largest(values) || 1;
    this.spans.forEach((span, i) => {
      const step = owner === "query" ? i + 1 : i;
      const value = step < this.run.count ? values[step] : NaN;
      const colour = chosen.patch !== null ? HEAT.join(" ") : "0 114 178";
      span.style.setProperty("background-color", Number.isNaN(value) ? "" : `rgb(${colour} / ${(0.55 * value / most).toFixed(3)})`);
    });
    const what = chosen.patch !== null ? "weight on the chosen patch" : this.page.definition().long_name;
    this.legend.textContent = `Colour: ${what}, from 0 to ${format(most)}; a token is coloured by the step that it ${owner === "query" ? "is fed to" : "is predicted by"}.`;
  }

  mark(state) {
    for (const span of this.marked) {
      span.classList.remove("cursor", "pinned");
      span.setAttribute("aria-selected", "false");
    }
    const owner = this.page.owner();
    const from = this.run.tokenOf(Math.min(state.from, this.run.count - 1), owner);
    const to = this.run.tokenOf(Math.min(state.to, this.run.count - 1), owner);
    this.marked = this.spans.slice(Math.max(from, 0), to + 1);
    for (const span of this.marked) {
      span.classList.add("cursor");
      span.classList.toggle("pinned", state.pinned);
      span.setAttribute("aria-selected", "true");
    }
    const [first] = this.marked;
    if (!first) this.body.removeAttribute("aria-activedescendant");
    else {
      this.body.setAttribute("aria-activedescendant", first.id);
      const top = first.offsetTop - this.body.offsetTop;
      if (this.page.byKey && (top < this.body.scrollTop || top > this.body.scrollTop + this.body.clientHeight - 30)) {
        this.body.scrollTop = top - this.body.clientHeight / 2;
      }
    }
  }
}

/** The pictures of one run with the heat of the cursor. */
class PictureView {
  constructor(page, run, label) {
    this.page = page;
    this.run = run;
    this.frames = run.views.map((view) => this.frame(view));
    this.note = make("p", { class: "legend" });
    this.bar = make("span", { class: "heat-bar", "aria-hidden": "true" });
    this.most = make("span", { class: "most" });
    this.under = make("output", { class: "under" });
    this.element = make("section", { class: "panel", "aria-label": "pictures" },
      make("h2", { text: label ? `Picture: ${oneLine(label)}` : "Picture" }),
      make("div", { class: this.frames.length > 1 ? "strip" : "" }, ...this.frames.map((frame) => frame.element)),
      make("p", { class: "scale" }, "0 ", this.bar, " ", this.most), this.under, this.note);
  }

  frame(view) {
    const canvas = make("canvas", {
      tabindex: 0, role: "img", "aria-label": `${view.label} with attention; arrow keys choose a patch, Enter shows which tokens looked at it`,
      onpointermove: (event) => this.say(this.patchAt(frame, event)),
      onpointerleave: () => this.say(null),
      onclick: (event) => this.choose(this.patchAt(frame, event)),
      onkeydown: (event) => this.key(frame, event),
    });
    const frame = { view, canvas, image: null, at: view.first };
    if (view.source) {
      frame.image = new Image();
      frame.image.onload = () => this.draw(this.page.state);
      frame.image.src = view.source;
    }
    frame.element = make("figure", {}, canvas, make("figcaption", { text: view.label }));
    return frame;
  }

  patchAt(frame, event) {
    const box = frame.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    const { view } = frame;
    let found = null, area = Infinity;
    for (let i = 0; i < view.count; i += 1) {
      const [l, t, r, b] = [0, 1, 2, 3].map((side) => view.boxTable.at(i, side));
      if (x >= l && x < r && y >= t && y < b && (r - l) * (b - t) < area) [found, area] = [view.first + i, (r - l) * (b - t)];
    }
    return found;
  }

  say(visual) {
    if (visual === null || !this.run.heat) { this.under.textContent = ""; return; }
    const { from, to } = this.page.range(this.run);
    const weight = meanOfKnown(Array.from({ length: to - from + 1 }, (_, i) => this.run.weight(from + i, visual)));
    this.under.textContent = `visual token ${visual}: ${format(weight)}`;
  }

  choose(visual) {
    if (visual === null || !this.run.maps) return;
    this.page.change({ patch: this.page.state.patch === visual ? null : visual });
  }

  key(frame, event) {
    const { view } = frame;
    const wide = view.columns || 1;
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[event.key];
    if (move) frame.at = clamp(frame.at + move, view.first, view.first + view.count - 1);
    else if (event.key === "Enter" || event.key === " ") this.choose(frame.at);
    else if (event.key === "Escape") this.page.change({ patch: null });
    else return;
    event.preventDefault();
    frame.focused = frame.at;
    this.say(frame.at);
    this.draw(this.page.state);
  }

  draw(state) {
    const { run } = this;
    const { from, to } = this.page.range(run);
    const weights = run.heat ? run.weights(from, to) : null;
    const most = weights ? (state.scale === "run" ? run.mostWeight() : largest(weights)) : 0;
    const ratio = window.devicePixelRatio || 1;
    for (const frame of this.frames) {
      const { view, canvas } = frame;
      const room = this.frames.length > 1 ? 160 : Math.min(this.element.clientWidth - 24 || 400, 520);
      const wide = Math.max(Math.min(room, 420 * view.width / view.height), 40);
      const high = wide * view.height / view.width;
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${high}px`;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      context.fillStyle = "#888";
      context.fillRect(0, 0, wide, high);
      if (frame.image?.complete && frame.image.naturalWidth) context.drawImage(frame.image, 0, 0, wide, high);
      if (weights) {
        context.imageSmoothingEnabled = state.smooth;
        context.globalAlpha = state.opacity / 100;
        context.drawImage(heatOf(view, weights, most), 0, 0, wide, high);
        context.globalAlpha = 1;
      }
      const outline = (box, colour) => {
        const [l, t, r, b] = box;
        for (const [paint, line] of [["black", 4], [colour, 2]]) {
          context.strokeStyle = paint;
          context.lineWidth = line;
          context.strokeRect(l * wide, t * high, (r - l) * wide, (b - t) * high);
        }
      };
      const steps = run.steps.slice(from, to + 1);
      const number = run.views.indexOf(view);
      for (const one of run.truth) if (one.picture === number && steps.includes(one.step)) outline(one.box, "white");
      for (const visual of [state.patch, document.activeElement === canvas ? frame.focused : null]) {
        if (visual === null || visual === undefined || visual < view.first || visual >= view.first + view.count) continue;
        outline([0, 1, 2, 3].map((side) => view.boxTable.at(visual - view.first, side)), "#ffea46");
      }
    }
    this.most.textContent = `${format(most)} of attention mass, per visual token (${state.scale === "run" ? "one scale for all steps" : "scale of this step"})`;
    this.bar.style.setProperty("opacity", state.opacity / 100);
    const truth = run.truth.length ? " White boxes: the object that the token names." : "";
    this.note.textContent = weights
      ? `Shown: ${run.heat.note}; the image gets ${format(run.total(from, to))} in all.${truth} Click a patch to see which tokens looked at it.`
      : "This run has no map of visual tokens.";
  }
}

/** The heat of a picture as a small canvas: a cell for each visual token, or a raster of several grids. */
function heatOf(view, weights, most) {
  const scale = RASTER / Math.max(view.width, view.height);
  const wide = view.columns || Math.max(1, Math.round(view.width * scale));
  const high = view.rows || Math.max(1, Math.round(view.height * scale));
  const values = new Float64Array(wide * high);
  if (view.rows) values.set(weights.subarray(view.first, view.first + view.count));
  else spread(view, weights, values, wide, high);
  const canvas = make("canvas", { width: wide, height: high });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(wide, high);
  values.forEach((value, i) => pixels.data.set([...HEAT, Math.round(255 * clamp(value / (most || 1), 0, 1))], 4 * i));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Spread each token's weight over what it shows, as `attnlens.plots.overlay` does; grids add up. */
function spread(view, weights, values, wide, high) {
  const areaOf = ([l, t, r, b]) => (r - l) * (b - t);
  const boxes = Array.from({ length: view.count }, (_, i) => [0, 1, 2, 3].map((side) => view.boxTable.at(i, side)));
  const smallest = Math.min(...boxes.map(areaOf).filter((area) => area > 0));
  boxes.forEach((box, i) => {
    const [l, t, r, b] = box;
    if (Number.isNaN(l)) return;
    const value = weights[view.first + i] * smallest / areaOf(box);
    for (let y = Math.ceil(t * high - 0.5); y < b * high - 0.5; y += 1) for (let x = Math.ceil(l * wide - 0.5); x < r * wide - 0.5; x += 1) values[y * wide + x] += value;
  });
}

/** Layer x head: the chosen definition, or visual mass, at the cursor. */
class GridView {
  constructor(page, label, value, stops, symmetric) {
    this.page = page;
    this.value = value;
    this.stops = stops;
    this.symmetric = symmetric;
    this.run = page.runs[page.state.run];
    this.at = [0, 0];
    this.canvas = make("canvas", {
      tabindex: 0, role: "application", "aria-label": `${label}: a row for each layer, a column for each head; arrow keys move, Enter chooses a head, L the layer`,
      onpointermove: (event) => this.say(this.cellAt(event)),
      onpointerleave: () => this.say(null),
      onclick: (event) => this.click(event),
      onkeydown: (event) => this.key(event),
    });
    this.under = make("output", { class: "under" });
    this.low = make("span");
    this.high = make("span");
    this.bar = make("canvas", { class: "bar", width: 64, height: 1, "aria-hidden": "true" });
    this.element = make("div", { class: "grid" }, make("h3", { text: label }), this.canvas,
      make("p", { class: "scale" }, this.low, " ", this.bar, " ", this.high), this.under);
    this.legend();
  }

  legend() {
    const context = this.bar.getContext("2d");
    for (let x = 0; x < 64; x += 1) {
      context.fillStyle = `rgb(${between(this.stops, x / 63).join(" ")})`;
      context.fillRect(x, 0, 1, 1);
    }
  }

  draw(state) {
    const { run } = this;
    const layers = run.layers.length, { heads } = run;
    this.values = Array.from({ length: layers }, (_, l) => Array.from({ length: heads }, (_, h) => this.value(l, h)));
    const flat = this.values.flat().map(Math.abs);
    this.most = largest(flat) || 1;
    const key = { mass: (l, h) => -this.values[l][h] || 0, looking: (l, h) => -run.lookingTable.at(l, h) || 0 }[state.sort];
    this.order = this.values.map((_, l) => {
      const order = [...Array(heads).keys()];
      return key && (state.sort !== "looking" || run.lookingTable) ? order.sort((a, b) => key(l, a) - key(l, b)) : order;
    });
    this.margin = 30;
    const room = Math.min((this.element.clientWidth || 360) - this.margin, 520);
    this.cell = clamp(Math.floor(room / heads), 3, Math.max(14, Math.min(36, Math.floor(420 / layers))));
    const ratio = window.devicePixelRatio || 1;
    const wide = this.margin + this.cell * heads + 2, high = this.cell * layers + 2;
    this.canvas.width = wide * ratio;
    this.canvas.height = high * ratio;
    this.canvas.style.width = `${wide}px`;
    this.canvas.style.height = `${high}px`;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.font = "10px sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    const text = getComputedStyle(this.canvas).color;
    const every = Math.ceil(12 / this.cell);
    for (let l = 0; l < layers; l += 1) {
      context.fillStyle = text;
      if (l % every === 0) context.fillText(String(run.layers[l]), this.margin - 4, (l + 0.5) * this.cell + 1);
      this.order[l].forEach((h, place) => {
        const value = this.values[l][h];
        const fraction = this.symmetric ? 0.5 + value / this.most / 2 : value / this.most;
        context.fillStyle = Number.isNaN(value) ? "transparent" : `rgb(${between(this.stops, fraction).join(" ")})`;
        context.fillRect(this.margin + place * this.cell + 1, l * this.cell + 1, this.cell - 0.5, this.cell - 0.5);
      });
    }
    context.lineWidth = 2;
    const outline = (l, place, cells, colour) => {
      context.strokeStyle = colour;
      context.strokeRect(this.margin + place * this.cell + 1, l * this.cell + 1, this.cell * cells - 1, this.cell - 1);
    };
    for (const l of state.layers ?? []) {
      if (state.head === null) outline(l, 0, heads, "#d55e00");
      else outline(l, this.order[l].indexOf(state.head), 1, "#d55e00");
    }
    if (document.activeElement === this.canvas) outline(this.at[0], this.at[1], 1, text);
    this.low.textContent = this.symmetric ? format(-this.most) : "0";
    this.high.textContent = format(this.most);
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const l = Math.floor((event.clientY - box.top - 1) / this.cell);
    const place = Math.floor((event.clientX - box.left - this.margin - 1) / this.cell);
    if (l < 0 || l >= this.values.length || place >= this.run.heads) return null;
    return { layer: l, head: place < 0 ? null : this.order[l][place] };
  }

  say(cell) {
    if (!cell) this.under.textContent = "";
    else if (cell.head === null) this.under.textContent = `layer ${this.run.layers[cell.layer]}`;
    else {
      const looking = this.run.lookingTable ? `; ${oneLine(this.run.looking.label)}: ${format(this.run.lookingTable.at(cell.layer, cell.head))}` : "";
      this.under.textContent = `layer ${this.run.layers[cell.layer]}, head ${cell.head}: ${format(this.values[cell.layer][cell.head])}${looking}`;
    }
  }

  click(event) {
    const cell = this.cellAt(event);
    if (cell) this.choose(cell, event.shiftKey, event.ctrlKey || event.metaKey);
  }

  /** Choose a head or a layer, or take it back; with Shift a range of layers, with Ctrl one more. */
  choose({ layer, head }, range = false, more = false) {
    const { layers, head: before } = this.page.state;
    if (head !== null && !range && !more) {
      const same = before === head && layers?.length === 1 && layers[0] === layer;
      this.page.change(same ? { layers: null, head: null } : { layers: [layer], head });
      return;
    }
    let chosen = [layer];
    if (range && layers) {
      const [low, high] = [Math.min(layers[0], layer), Math.max(layers[0], layer)];
      chosen = Array.from({ length: high - low + 1 }, (_, i) => low + i);
    } else if (more && layers) {
      chosen = (layers.includes(layer) ? layers.filter((l) => l !== layer) : [...layers, layer]).sort((a, b) => a - b);
    } else if (before === null && layers?.length === 1 && layers[0] === layer) chosen = [];
    this.page.change({ layers: chosen.length ? chosen : null, head: null });
  }

  key(event) {
    const [l, place] = this.at;
    const cell = { layer: l, head: this.order[l][place] };
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (move) this.at = [clamp(l + move[0], 0, this.values.length - 1), clamp(place + move[1], 0, this.run.heads - 1)];
    else if (event.key === "Enter" || event.key === " ") this.choose(cell);
    else if (event.key === "l" || event.key === "L") this.choose({ layer: l, head: null }, event.shiftKey);
    else if (event.key === "Escape") this.page.change({ layers: null, head: null });
    else return;
    event.preventDefault();
    this.say({ layer: this.at[0], head: this.order[this.at[0]][this.at[1]] });
    this.draw(this.page.state);
  }
}

/** The curve over steps. */
class ChartView {
  constructor(page) {
    this.page = page;
    this.svg = makeSvg("svg", {
      class: "chart", role: "img", tabindex: 0,
      onpointermove: (event) => page.hover(this.placeAt(event)),
      onpointerdown: (event) => page.press(event, this.placeAt(event)),
      onkeydown: (event) => page.moveByKey(event),
    });
    this.kinds = make("select", { "aria-label": "what is drawn", onchange: () => page.change({ chart: this.kinds.value }) });
    this.stacked = page.checkbox("stacked", "stacked");
    this.sink = page.checkbox("sink", "with sink");
    this.names = make("ul", { class: "names" });
    this.note = make("p", { class: "legend" });
    this.element = make("section", { class: "panel wide", "aria-label": "curve" },
      make("h2", { text: "Over the steps" }), make("p", { class: "tools" }, this.kinds, this.stacked, this.sink), this.svg, this.names, this.note);
  }

  /** Lines of the chosen kind, and the label of their axis. */
  lines(state) {
    const { page } = this;
    const shown = page.shown();
    const suffix = (run) => (shown.length > 1 ? ` (${oneLine(run.name)})` : "");
    const [run] = shown;
    if (state.chart === "segments") {
      const names = page.payload.segments.filter((name) => state.sink || name !== "sink");
      return {
        label: state.sink ? "fraction of attention mass" : `fraction of mass without the sink${state.head === null ? "" : " (not for one head)"}`,
        lines: names.map((name) => ({ name, values: run.segment(state, page.payload.segments.indexOf(name)) })),
        stacked: state.stacked,
      };
    }
    if (state.chart === "split") {
      const words = { log_odds: "log-odds of visual mass", counts: "counts", preference: "preference" };
      return { label: "nats", lines: Object.entries(words).map(([term, name]) => ({ name, values: run.splitOf(state, term) })) };
    }
    if (state.chart === "dependence") {
      return {
        label: "nats",
        lines: run.dependence.references.flatMap((reference, i) => [
          { name: `KL divergence, image ${reference}`, values: run.dependenceOf("kl", i) },
          { name: `log-probability lost, image ${reference}`, values: run.dependenceOf("log_ratio", i) },
        ]),
      };
    }
    if (state.chart === "patch") {
      return { label: "fraction of attention mass", lines: shown.filter((one) => one.heat).map((one) => ({ name: `visual token ${state.patch}${suffix(one)}`, values: one.patch(state.patch) })) };
    }
    const lines = shown.map((one) => ({ name: `${state.definition}${suffix(one)}`, values: one.share(state) }));
    if (shown.length > 1) {
      const [a, b] = lines.map((line) => line.values);
      lines.push({ name: `difference: ${oneLine(shown[1].name)} - ${oneLine(shown[0].name)}`, values: a.map((value, t) => (t < b.length ? b[t] - value : NaN)) });
    }
    return { label: page.definition().units, lines };
  }

  draw(state) {
    const { page } = this;
    const run = page.runs[state.run];
    const kinds = { share: `attention to the image (${state.definition})`, segments: "all segments (mass)" };
    if (run.split) kinds.split = "counts and preference (log-odds)";
    if (run.dependence) kinds.dependence = "dependence on the image";
    if (state.patch !== null && run.maps) kinds.patch = "the chosen patch";
    this.kinds.replaceChildren(...Object.entries(kinds).map(([value, text]) => make("option", { value, text, selected: value === state.chart })));
    const known = state.chart in kinds ? state : { ...state, chart: "share" };
    this.stacked.hidden = known.chart !== "segments";
    this.sink.hidden = known.chart !== "segments";
    const { label, lines, stacked } = this.lines(known);
    const wide = Math.max((this.element.clientWidth || 700) - 24, 240);
    this.frame = { left: 52, right: wide - 8, top: 18, bottom: CHART_HEIGHT - 34, count: run.count };
    const { left, right, top, bottom } = this.frame;
    const areas = stacked ? stack(lines) : null;
    const values = (areas ?? lines).flatMap((line) => Array.from(line.values).filter(Number.isFinite));
    const high = Math.max(values.reduce((a, b) => Math.max(a, b), -Infinity), 0) || (values.length ? 0 : 1);
    const low = Math.min(values.reduce((a, b) => Math.min(a, b), Infinity), 0);
    const rise = high - low || 1;
    const y = (value) => bottom - (value - low) / rise * (bottom - top);
    const x = (t) => this.x(t);
    const parts = [];
    run.regions.forEach((region) => {
      const owner = page.owner(), shift = owner === "query" ? 1 : 0;
      const from = x(clamp(run.steps.indexOf(region.start) + shift, 0, run.count - 1)), last = run.steps.indexOf(region.stop - 1);
      const to = x(clamp((last < 0 ? run.count - 1 : last) + shift, 0, run.count - 1));
      const colour = COLOURS[page.regionPlace(region.name) % COLOURS.length];
      parts.push(makeSvg("rect", { x: from, y: top, width: Math.max(to - from, 1), height: bottom - top, fill: colour, "fill-opacity": 0.09 }));
      if (to - from > 24) parts.push(makeSvg("text", { x: from + 2, y: top - 5, "font-size": 10, fill: "currentColor" }, oneLine(region.name, Math.floor((to - from) / 6))));
    });
    for (const tick of ticks(low, high)) {
      parts.push(makeSvg("line", { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: "currentColor", "stroke-opacity": tick === 0 ? 0.6 : 0.15 }));
      parts.push(makeSvg("text", { x: left - 4, y: y(tick) + 3, "font-size": 10, "text-anchor": "end", fill: "currentColor" }, format(tick)));
    }
    for (const tick of ticks(0, run.count - 1).filter(Number.isInteger)) {
      parts.push(makeSvg("text", { x: x(tick), y: bottom + 13, "font-size": 10, "text-anchor": "middle", fill: "currentColor" }, String(run.steps[tick])));
    }
    parts.push(makeSvg("text", { x: (left + right) / 2, y: CHART_HEIGHT - 6, "font-size": 11, "text-anchor": "middle", fill: "currentColor" }, `step (of the ${page.owner() === "query" ? "token fed in" : "token predicted"})`));
    parts.push(makeSvg("text", { transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)`, "font-size": 11, "text-anchor": "middle", fill: "currentColor" }, label));
    for (const one of page.shown()) for (const event of one.events) {
      const place = one.steps.indexOf(event.step);
      if (place >= 0) parts.push(makeSvg("line", { x1: x(place), x2: x(place), y1: top, y2: bottom, stroke: "#d55e00", "stroke-width": 1.5, "stroke-dasharray": "3 2" }, makeSvg("title", {}, oneLine(event.name))));
    }
    (areas ?? lines).forEach((line, i) => {
      const colour = COLOURS[i % COLOURS.length];
      if (areas) parts.push(makeSvg("path", { d: areaPath(line, x, y), fill: colour, "fill-opacity": 0.8 }));
      else parts.push(makeSvg("path", { d: linePath(line.values, x, y), fill: "none", stroke: colour, "stroke-width": 1.5, "stroke-dasharray": DASHES[i % DASHES.length] || null }));
    });
    this.cursor = makeSvg("rect", { y: top, height: bottom - top, fill: "currentColor", "fill-opacity": 0.25, class: "cursor-line" });
    parts.push(this.cursor);
    fill(this.svg, { width: wide, height: CHART_HEIGHT, viewBox: `0 0 ${wide} ${CHART_HEIGHT}`, "aria-label": `${kinds[known.chart]}; arrow keys move the cursor` }, []);
    this.svg.replaceChildren(...parts);
    this.drawn = lines;
    this.names.replaceChildren(...lines.map((line, i) => {
      const dash = stacked ? "" : DASHES[i % DASHES.length];
      const sample = makeSvg("svg", { width: 28, height: 10, "aria-hidden": "true" },
        makeSvg("line", { x1: 0, x2: 28, y1: 5, y2: 5, stroke: COLOURS[i % COLOURS.length], "stroke-width": stacked ? 8 : 2, "stroke-dasharray": dash || null }));
      return make("li", {}, sample, ` ${line.name} `, make("b", { "data-line": i }));
    }));
    this.mark(state);
    const definition = page.definition();
    this.note.textContent = known.chart === "share" ? `${definition.description} ${definition.formula} (${definition.source})` : "";
  }

  mark(state) {
    const half = Math.max((this.x(1) - this.x(0)) / 2, 0.75);
    const from = Math.min(state.from, this.frame.count - 1), to = Math.min(state.to, this.frame.count - 1);
    this.cursor.setAttribute("x", this.x(from) - half);
    this.cursor.setAttribute("width", this.x(to) - this.x(from) + 2 * half);
    for (const cell of this.names.querySelectorAll("b")) {
      const { values } = this.drawn[Number(cell.dataset.line)];
      cell.textContent = format(meanOfKnown(values.slice(state.from, state.to + 1)));
    }
  }

  x(t) {
    const { left, right, count } = this.frame;
    return left + t / Math.max(count - 1, 1) * (right - left);
  }

  placeAt(event) {
    const box = this.svg.getBoundingClientRect();
    const { left, right, count } = this.frame;
    return clamp(Math.round((event.clientX - box.left - left) / (right - left) * (count - 1)), 0, count - 1);
  }
}

function linePath(values, x, y) {
  let path = "", open = false;
  values.forEach((value, t) => {
    if (Number.isFinite(value)) path += `${open ? "L" : "M"}${x(t).toFixed(1)} ${y(value).toFixed(1)}`;
    open = Number.isFinite(value);
  });
  return path;
}

/** Lines on top of each other: each with the one below it. */
function stack(lines) {
  let below = null;
  return lines.map((line) => {
    const under = below ?? line.values.map(() => 0);
    const values = line.values.map((value, t) => under[t] + (Number.isFinite(value) ? value : 0));
    below = values;
    return { ...line, values, under };
  });
}

function areaPath({ values, under }, x, y) {
  const up = Array.from(values, (value, t) => `${x(t).toFixed(1)} ${y(value).toFixed(1)}`);
  const back = Array.from(under, (value, t) => `${x(t).toFixed(1)} ${y(value).toFixed(1)}`).reverse();
  return `M${[...up, ...back].join("L")}Z`;
}

/** Round numbers between two values: about five. */
function ticks(low, high) {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** All numbers at the cursor, a column for each run. */
class ReadoutView {
  constructor(page) {
    this.page = page;
    this.body = make("tbody");
    this.head = make("tr");
    this.live = make("p", { class: "unseen", "aria-live": "polite" });
    this.element = make("section", { class: "panel", "aria-label": "numbers at the cursor" },
      make("h2", { text: "At the cursor" }), make("table", {}, make("thead", {}, this.head), this.body), this.live);
  }

  /** Rows [key, name, value of each run]; numbers are means over the span. */
  rows(state) {
    const { page } = this;
    const shown = page.shown();
    const rows = [];
    const add = (key, name, value) => rows.push([key, name, shown.map(value)]);
    const over = (run, series) => { const { from, to } = page.range(run); return meanOfKnown(series.slice(from, to + 1)); };
    const label = (run, texts) => { const { from, to } = page.range(run); return from === to ? oneLine(texts[from]) : `${oneLine(texts[from], 24)} … ${oneLine(texts[to], 24)}`; };
    add("step", "step", (run) => { const { from, to } = page.range(run); return from === to ? String(run.steps[from]) : `${run.steps[from]}-${run.steps[to]}`; });
    add("query", "token fed in", (run) => label(run, run.query));
    add("predicted", "token predicted", (run) => label(run, run.predicted));
    add("share", `image: ${state.definition}`, (run) => over(run, run.share(state)));
    page.payload.segments.forEach((name, i) => add(`mass-${name}`, `mass: ${name}${state.sink ? "" : `, sink left out${state.head === null ? "" : " (not for one head)"}`}`, (run) => (name === "sink" && !state.sink ? NaN : over(run, run.segment(state, i)))));
    page.payload.segments.forEach((name, i) => add(`keys-${name}`, `keys: ${name}`, (run) => over(run, run.series((t) => run.keysTable.at(t, i)))));
    if (shown.some((run) => run.split)) for (const [term, name] of [["log_odds", `log-odds of visual mass${state.head === null ? "" : ", mean over heads"} (nats)`], ["counts", "of these, counts"], ["preference", "of these, preference"]]) add(term, name, (run) => (run.split ? over(run, run.splitOf(state, term)) : NaN));
    const references = [...new Set(shown.flatMap((run) => run.dependence?.references ?? []))];
    for (const reference of references) for (const [name, words] of [["kl", "KL divergence (nats)"], ["hellinger", "Hellinger distance"], ["log_ratio", "log-probability lost (nats)"]]) {
      add(`${name}-${reference}`, `${words}, image ${reference}`, (run) => { const i = run.dependence?.references.indexOf(reference) ?? -1; return i < 0 ? NaN : over(run, run.dependenceOf(name, i)); });
    }
    if (shown.some((run) => run.maps)) add("map-total", "map: the whole image", (run) => (run.heat ? run.total(page.range(run).from, page.range(run).to) : NaN));
    if (state.patch !== null) add("patch", `map: visual token ${state.patch}`, (run) => (run.heat && state.patch < run.maps.visual ? over(run, run.patch(state.patch)) : NaN));
    return rows;
  }

  draw(state) {
    const shown = this.page.shown();
    const rows = this.rows(state);
    const both = shown.length > 1;
    this.head.replaceChildren(make("td"), ...shown.map((run) => make("th", { scope: "col", text: oneLine(run.name) || "value" })), ...(both ? [make("th", { scope: "col", text: "difference" })] : []));
    const text = (value) => (typeof value === "number" ? format(value) : value);
    this.body.replaceChildren(...rows.map(([key, name, values]) => {
      const last = both ? [make("td", { class: "number", text: typeof values[0] === "number" ? format(values[1] - values[0]) : "" })] : [];
      return make("tr", { "data-key": key }, make("th", { scope: "row", text: name }), ...values.map((value) => make("td", { class: typeof value === "number" ? "number" : null, text: text(value) })), ...last);
    }));
    const at = (key) => text(rows.find((row) => row[0] === key)[2][0]);
    this.live.textContent = `step ${at("step")}: ${at("query")} looks, ${at("predicted")} follows; image ${at("share")}`;
  }

  csv(state) {
    const quote = (value) => {
      const text = String(value);
      // a spreadsheet would run what begins like this
      const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
      return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
    };
    const head = ["name", ...this.page.shown().map((run) => run.name || "value")];
    const rows = this.rows(state).map(([, name, values]) => [name, ...values.map((value) => (Number.isNaN(value) ? "" : value))]);
    return [head, ...rows].map((row) => row.map(quote).join(",")).join("\n") + "\n";
  }
}

// The page

let pages = 0;

/** One page about runs. */
class Page {
  constructor(root, payload, options) {
    pages += 1;
    this.id = `attnlens-${pages}`;
    this.root = root;
    this.payload = payload;
    this.options = options;
    this.byKey = false;
    this.drag = null;
    this.stops = new AbortController();
    const store = new Store(payload.blobs);
    this.runs = payload.runs.map((run) => new Run(run, payload, store));
    this.regions = [...new Set(this.runs.flatMap((run) => run.regions.map((region) => region.name)))];
  }

  async open() {
    await Promise.all(this.runs.map((run) => run.open()));
    const names = this.payload.definitions.map((one) => one.name);
    const definition = names.includes("look-back") ? "look-back" : names[0];
    const place = this.runs[0].firstKnown(definition);
    this.first = { ...FIRST, definition, other: this.runs.length > 1 ? 1 : -1, from: place, to: place };
    const hash = this.options.hash ? location.hash : "";
    this.state = fromHash(hash, this.first, this.runs, names);
    await this.unpack();
    this.build();
    this.refresh();
    const { signal } = this.stops;
    if (this.options.hash) window.addEventListener("hashchange", () => this.readHash(names), { signal });
    window.addEventListener("pointerup", () => { this.drag = null; }, { signal });
    this.sizes = new ResizeObserver(() => requestAnimationFrame(() => { if (this.root.clientWidth !== this.width) this.refresh(); }));
    this.sizes.observe(this.root);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.refresh(), { signal });
  }

  close() {
    this.stops.abort();
    this.sizes?.disconnect();
  }

  definition() {
    return this.payload.definitions.find((one) => one.name === this.state.definition);
  }

  owner() {
    return this.definition().owner;
  }

  regionPlace(name) {
    return this.regions.indexOf(name);
  }

  /** The runs that stand side by side. */
  shown(state = this.state) {
    const { run, other } = state;
    return other >= 0 && other !== run ? [this.runs[run], this.runs[other]] : [this.runs[run]];
  }

  range(run) {
    const last = run.count - 1;
    return { from: Math.min(this.state.from, last), to: Math.min(this.state.to, last) };
  }

  /** Unpack what the state needs. */
  unpack(state = this.state) {
    return Promise.all(this.shown(state).flatMap((run) => [run.openHeads(state), run.chooseHeat(state)]));
  }

  checkbox(key, words) {
    const box = make("input", { type: "checkbox", onchange: () => this.change({ [key]: box.checked }) });
    const label = make("label", { class: "check", "data-state": key }, box, ` ${words}`);
    return label;
  }

  /** A list to choose from, with its label. */
  choice(key, words, entries, read = String) {
    const list = make("select", { onchange: () => this.change({ [key]: read(list.value) }) }, ...entries.map(([value, text]) => make("option", { value, text })));
    return make("label", { "data-state": key }, `${words} `, list);
  }

  build() {
    const { payload } = this;
    const definitions = payload.definitions.map((one) => [one.name, one.name]);
    const names = this.runs.map((run, i) => [i, oneLine(run.name) || `run ${i}`]);
    const several = this.runs.length > 1;
    this.number = { from: this.stepInput("from", "step"), to: this.stepInput("to", "to") };
    const copied = this.runs.some((run) => run.shares_with_copied);
    this.controls = [
      several ? this.choice("run", "Run", names, Number) : null,
      several ? this.choice("other", "beside", [[-1, "none"], ...names], Number) : null,
      this.choice("definition", "Definition", definitions),
      this.number.from, this.number.to,
      copied ? this.checkbox("copied", "copied tokens count as image") : null,
    ].filter(Boolean);
    this.about = make("output", { class: "about" });
    const opacity = make("input", { type: "range", min: 0, max: 100, oninput: () => this.change({ opacity: Number(opacity.value) }) });
    this.heatControls = [
      make("label", { "data-state": "opacity" }, "Opacity ", opacity),
      this.choice("scale", "Scale", [["run", "of all steps"], ["step", "of this step"]]),
      this.checkbox("smooth", "interpolate"),
    ];
    const sorts = [["index", "by index"], ["mass", "by value"]];
    if (this.runs.some((run) => run.looking)) sorts.push(["looking", "by looking score"]);
    this.sort = this.choice("sort", "Heads", sorts);
    const button = (text, title, run) => make("button", { type: "button", title, text, onclick: run });
    this.said = make("output", { class: "said" });
    const kinds = { PNG: "the pictures with heat", SVG: "the curve", CSV: "the numbers at the cursor" };
    const give = (verb, save) => Object.entries(kinds).map(([kind, what]) => button(kind, `${verb} ${what}`, () => this.give(kind, save)));
    this.tools = make("div", { class: "tools", role: "toolbar", "aria-label": "settings" }, ...this.controls, this.about,
      make("span", { class: "exports" }, "Copy ", ...give("Copy", false), " Save ", ...give("Save", true), this.said));
    this.stage = make("div", { class: "stage" });
    this.chart = new ChartView(this);
    this.readout = new ReadoutView(this);
    const error = payload.errors;
    const lacks = [...new Set(this.runs.flatMap((run) => run.lacks))].map((text) => {
      const whose = this.runs.filter((run) => run.lacks.includes(text));
      return whose.length === this.runs.length ? text : `${whose.map((run) => run.name).join(", ")}: ${text}`;
    });
    this.root.replaceChildren(
      make("header", {}, make("h1", { text: visible(payload.title) }), ...this.runs.map((run) => this.verdict(run))),
      this.tools, this.stage,
      make("footer", {},
        ...(lacks.length ? [make("h2", { text: "What this page lacks" }), make("ul", { class: "lacks" }, ...lacks.map((text) => make("li", { text: visible(text) })))] : []),
        make("p", { text: `Mass by head is kept in 8 bits: values are off by at most ${format(error.mass)} of attention mass, weights of visual tokens by at most ${format(error.maps)}. Means over all heads of a layer are exact, but for mass with the sink. Attention is not use: whether the answer needs the image, dependence says, where it was measured.` }),
        make("p", { text: `Made by ${visible(payload.made_by)}. Keys: arrows move, Shift takes a span, Enter pins, Escape lets go.` })));
    this.layout = "";
  }

  verdict(run) {
    const words = { true: "right", false: "wrong", null: "not judged" };
    const facts = [];
    if (run.answer !== null) facts.push(`answer: ${oneLine(run.answer, 200)}`);
    if (run.expected !== null) facts.push(`expected: ${oneLine(run.expected, 200)}`);
    if (run.cut_off) facts.push("cut off");
    facts.push(visible(`${run.model}${run.mode ? `, ${run.mode}` : ""}`));
    return make("div", { class: "verdict" },
      run.name ? make("b", { text: `${oneLine(run.name)} ` }) : null,
      make("span", { class: `badge ${words[run.right].replace(" ", "-")}`, text: words[run.right] }),
      make("span", { text: ` ${facts.join(" · ")}` }));
  }

  stepInput(key, words) {
    const box = make("input", { type: "number", onchange: () => {
      const place = this.runs[this.state.run].steps.indexOf(Number(box.value));
      if (place >= 0) this.moveTo(key === "from" ? place : this.state.from, key === "from" ? place : Math.max(place, this.state.from), true);
      else this.marks();
    } });
    return make("label", { "data-state": key }, `${words} `, box);
  }

  /** Lay out the panels of the runs that are shown. */
  panels() {
    const wanted = `${this.state.run} ${this.state.other}`;
    if (wanted === this.layout) return;
    this.layout = wanted;
    const shown = this.shown();
    const both = shown.length > 1;
    const name = (run) => (both || this.runs.length > 1 ? run.name : "");
    this.answers = shown.map((run) => new AnswerView(this, run, name(run)));
    this.pictures = shown.map((run) => new PictureView(this, run, name(run)));
    const value = (run) => (l, h) => { const { from, to } = this.range(run); return l < run.layers.length && h < run.heads ? run.headValue(this.state, from, to, l, h) : NaN; };
    this.grids = shown.map((run) => new GridView(this, name(run) || "All heads", value(run), CIVIDIS, false));
    if (both) this.grids.push(new GridView(this, "difference", (l, h) => value(shown[1])(l, h) - value(shown[0])(l, h), DIVERGING, true));
    this.gridNote = make("p", { class: "legend" });
    const grids = make("section", { class: "panel", "aria-label": "layers and heads" }, make("h2", { text: "Layers and heads" }),
      make("p", { class: "tools" }, this.sort), make("div", { class: "grids" }, ...this.grids.map((grid) => grid.element)), this.gridNote);
    const heat = make("p", { class: "tools wide" }, ...this.heatControls);
    this.stage.classList.toggle("both", both);
    const side = make("div", { class: `side${both ? " wide" : ""}` }, grids, this.readout.element);
    this.stage.replaceChildren(...this.answers.map((view) => view.element), this.chart.element, heat, ...this.pictures.map((view) => view.element), side);
  }

  /** Change the state and draw what depends on it. */
  change(values) {
    const next = { ...this.state, ...this.next, ...values };
    const run = this.runs[next.run];
    for (const key of ["from", "to"]) next[key] = Math.min(next[key], run.count - 1);
    if ((next.layers ?? []).some((l) => l >= run.layers.length)) Object.assign(next, { layers: null, head: null });
    if (next.patch !== null && !(next.patch < (run.maps?.visual ?? 0))) next.patch = null;
    if (next.patch === null && next.chart === "patch") next.chart = "share";
    return this.show(next);
  }

  /** Unpack what a state needs, then draw it, unless another was asked for meanwhile. */
  async show(next) {
    this.next = next;
    this.root.setAttribute("aria-busy", "true");
    await this.unpack(next);
    if (this.next !== next) return;
    this.state = next;
    this.next = null;
    this.refresh();
    this.root.removeAttribute("aria-busy");
  }

  /** Draw everything. */
  refresh() {
    const { state } = this;
    this.width = this.root.clientWidth;
    this.panels();
    for (const view of this.answers) view.paint(state);
    this.chart.draw(state);
    this.marks();
    for (const label of this.root.querySelectorAll("[data-state]")) {
      const box = label.querySelector("input, select");
      const value = state[label.dataset.state];
      if (box.type === "checkbox") box.checked = value;
      else if (box.type !== "number") box.value = String(value);
    }
    const run = this.runs[state.run];
    const chosen = state.layers?.map((l) => run.layers[l]).join(", ");
    const whose = chosen === undefined ? "all layers and heads" : `layer${state.layers.length > 1 ? "s" : ""} ${chosen}${state.head === null ? "" : `, head ${state.head}`}`;
    const missing = state.head !== null && !this.definition().per_head ? ` (${state.definition} has no value for one head: the layer's is shown)` : "";
    this.about.textContent = `About ${whose}${missing}.`;
    this.gridNote.textContent = `${this.definition().per_head ? this.definition().long_name : "visual mass"} of each head${state.from === state.to ? "" : ", mean over the span"}. Click a head, or a layer's number; again takes it back. Shift takes a range of layers, Ctrl one more.`;
  }

  /** Draw what the cursor alone changes. */
  marks() {
    const { state } = this;
    for (const view of this.answers) view.mark(state);
    for (const view of this.pictures) view.draw(state);
    for (const view of this.grids) view.draw(state);
    this.chart.mark(state);
    this.readout.draw(state);
    const { steps } = this.runs[state.run];
    for (const key of ["from", "to"]) this.number[key].querySelector("input").value = steps[state[key]];
    this.noteHash();
    this.options.onStep?.(steps[state.from]);
  }

  moveTo(from, to = from, pinned = this.state.pinned) {
    if (from === this.state.from && to === this.state.to && pinned === this.state.pinned) return;
    for (const state of [this.state, this.next]) if (state) Object.assign(state, { from, to, pinned });
    this.marks();
  }

  hover(place) {
    if (place === null) return;
    if (this.drag !== null) this.moveTo(Math.min(this.drag, place), Math.max(this.drag, place), true);
    else if (!this.state.pinned) this.moveTo(place);
  }

  press(event, place) {
    if (place === null || event.button !== 0) return;
    this.byKey = false;
    if (event.shiftKey) {
      event.preventDefault(); // no text is selected
      this.drag = place;
      this.moveTo(place, place, true);
    } else {
      const again = this.state.pinned && this.state.from === place && this.state.to === place;
      this.moveTo(place, place, !again);
    }
  }

  moveByKey(event) {
    const run = this.runs[this.state.run];
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, PageUp: -50, PageDown: 50, Home: -run.count, End: run.count };
    const { from, to } = this.state;
    this.byKey = true;
    if (event.key in moves) {
      const move = moves[event.key];
      if (event.shiftKey) {
        if (this.anchor !== from && this.anchor !== to) this.anchor = from;
        const end = clamp((this.anchor === from ? to : from) + move, 0, run.count - 1);
        this.moveTo(Math.min(this.anchor, end), Math.max(this.anchor, end), true);
      } else {
        this.anchor = null;
        const place = clamp(from + move, 0, run.count - 1);
        this.moveTo(place);
      }
    } else if (event.key === "Enter" || event.key === " ") this.moveTo(from, to, !this.state.pinned);
    else if (event.key === "Escape") {
      this.anchor = null;
      if (this.state.patch !== null || this.state.layers) this.change({ patch: null, layers: null, head: null });
      else this.moveTo(from, from, false);
    } else return;
    event.preventDefault();
  }

  noteHash() {
    if (!this.options.hash) return;
    clearTimeout(this.waiting);
    // browsers refuse to note every move of a mouse
    this.waiting = setTimeout(() => {
      const hash = toHash(this.state, this.first);
      try { history.replaceState(null, "", hash ? `#${hash}` : "#"); } catch { /* a page inside another has no address */ }
    }, 150);
  }

  readHash(names) {
    return this.show(fromHash(location.hash, this.first, this.runs, names));
  }

  /** Copy or save a picture, the curve, or numbers. */
  async give(kind, save) {
    const blob = { PNG: () => this.png(), SVG: () => this.svg(), CSV: () => new Blob([this.readout.csv(this.state)], { type: "text/csv" }) }[kind]();
    const content = await blob;
    if (!content) { this.said.textContent = " there is no picture"; return; }
    try {
      if (save) throw new Error("a file is wanted");
      if (kind === "PNG") await navigator.clipboard.write([new ClipboardItem({ "image/png": content })]);
      else await navigator.clipboard.writeText(await content.text());
      this.said.textContent = ` ${kind} copied`;
    } catch {
      const link = make("a", { href: URL.createObjectURL(content), download: `attnlens-step-${this.runs[this.state.run].steps[this.state.from]}.${kind.toLowerCase()}` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      this.said.textContent = ` ${kind} saved`;
    }
  }

  png() {
    const drawn = this.pictures.flatMap((view) => view.frames.map((frame) => frame.canvas));
    if (!drawn.length) return null;
    const whole = make("canvas", { width: drawn.reduce((sum, one) => sum + one.width, 0), height: Math.max(...drawn.map((one) => one.height)) });
    let x = 0;
    for (const one of drawn) { whole.getContext("2d").drawImage(one, x, 0); x += one.width; }
    return new Promise((resolve) => { whole.toBlob(resolve, "image/png"); });
  }

  svg() {
    const copy = this.chart.svg.cloneNode(true);
    copy.setAttribute("xmlns", SVG);
    for (const name of ["class", "tabindex"]) copy.removeAttribute(name);
    copy.setAttribute("color", "#222");
    copy.setAttribute("font-family", "sans-serif");
    const names = this.chart.drawn.map((line, i) => makeSvg("text", { x: 60, y: CHART_HEIGHT + 14 * (i + 1), "font-size": 11, fill: COLOURS[i % COLOURS.length] }, line.name));
    copy.append(...names);
    const high = CHART_HEIGHT + 14 * names.length + 8;
    copy.setAttribute("height", high);
    copy.setAttribute("viewBox", `0 0 ${copy.getAttribute("width")} ${high}`);
    return new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
  }
}

// The index of many runs

class Index {
  constructor(root, payload) {
    this.root = root;
    this.payload = payload;
    this.limit = MORE_ROWS;
  }

  async open() {
    const redraw = () => { this.limit = MORE_ROWS; this.draw(); };
    this.search = make("input", { type: "search", "aria-label": "words in question or answer", placeholder: "words in question or answer", oninput: redraw });
    const list = (label, entries) => make("select", { "aria-label": label, onchange: redraw }, ...entries.map(([value, text]) => make("option", { value, text })));
    this.right = list("which answers", [["", "all answers"], ["true", "right"], ["false", "wrong"], ["null", "not judged"]]);
    this.sort = list("order", [["name", "by name"], ["start", "most attention at the start"], ["end", "least attention at the end"], ["fall", "largest fall"], ["steps", "longest answer"]]);
    this.count = make("output");
    this.list = make("ol", { class: "runs" });
    this.more = make("button", { type: "button", text: "Show more", onclick: () => { this.limit += MORE_ROWS; this.draw(); } });
    const definition = this.payload.rows[0]?.definition ?? "";
    this.root.replaceChildren(make("header", {}, make("h1", { text: visible(this.payload.title) })),
      make("div", { class: "tools" }, this.search, this.right, this.sort, this.count), this.list, this.more,
      make("footer", {}, make("p", { text: `Curves: attention to the image over the answer (${definition}), all on one scale; numbers: means over its first and last quarter. Made by ${visible(this.payload.made_by)}.` })));
    this.draw();
  }

  close() {}

  draw() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (row) => {
      const text = `${row.name} ${row.question} ${row.answer ?? ""} ${row.expected ?? ""} ${row.mode}`.toLowerCase();
      return words.every((word) => text.includes(word)) && (this.right.value === "" || this.right.value === String(row.right));
    };
    const order = {
      name: (a, b) => (a.name < b.name ? -1 : Number(a.name > b.name)), start: (a, b) => (b.start ?? -1) - (a.start ?? -1), end: (a, b) => (a.end ?? 2) - (b.end ?? 2),
      fall: (a, b) => ((b.start ?? 0) - (b.end ?? 0)) - ((a.start ?? 0) - (a.end ?? 0)), steps: (a, b) => b.steps - a.steps,
    }[this.sort.value];
    const rows = this.payload.rows.filter(fits).sort(order);
    const most = largest(this.payload.rows.flatMap((row) => row.curve.map((value) => value ?? 0))) || 1;
    this.count.textContent = `${rows.length} of ${this.payload.rows.length}`;
    this.list.replaceChildren(...rows.slice(0, this.limit).map((row) => this.row(row, most)));
    this.more.hidden = rows.length <= this.limit;
  }

  row(row, most) {
    const word = { true: "right", false: "wrong", null: "not judged" }[row.right];
    const values = row.curve.map((value) => value ?? NaN);
    const path = linePath(values, (t) => t / Math.max(values.length - 1, 1) * 140, (value) => 36 - value / most * 34);
    // an address of this folder alone: never a script
    const href = /^pages\/[\w.%~-]+\.html$/.test(row.href) ? row.href : null;
    return make("li", {},
      makeSvg("svg", { width: 140, height: 38, role: "img", "aria-label": `from ${format(row.start ?? NaN)} to ${format(row.end ?? NaN)}` }, makeSvg("path", { d: path, fill: "none", stroke: COLOURS[0], "stroke-width": 1.5 })),
      make("div", {}, make("a", { href, text: oneLine(row.question, 160) || oneLine(row.name) }),
        make("div", {}, make("span", { class: `badge ${word.replace(" ", "-")}`, text: word }),
          ` ${oneLine(row.answer ?? "no answer", 120)}${row.expected === null ? "" : ` (expected ${oneLine(row.expected, 120)})`}`),
        make("div", { class: "legend", text: `${oneLine(row.name)}${row.mode ? `, ${oneLine(row.mode)}` : ""}, ${row.steps} steps, ${format(row.start ?? NaN)} to ${format(row.end ?? NaN)}` })));
  }
}

/**
 * Show a payload in an element.
 *
 * Options: `hash`, whether the state is kept in the address; `onStep`, told the step at the cursor.
 * Returns the page, whose `ready` is a promise and whose `close` takes the listeners off.
 */
export function start(root, payload, options = {}) {
  root.classList.add("attnlens");
  const page = payload.kind === "index" ? new Index(root, payload) : new Page(root, payload, options);
  page.ready = page.open().then(() => { root.dataset.ready = "true"; }, (error) => {
    root.replaceChildren(make("p", { role: "alert", text: `This page cannot be shown: ${error.message}` }));
    throw error;
  });
  return page;
}

/** The front of a Jupyter widget. */
export default {
  render({ model, el }) {
    const root = make("div");
    el.append(root);
    let told = null;
    const page = start(root, JSON.parse(model.get("payload")), {
      onStep: (step) => {
        if (step === told) return;
        told = step;
        model.set("step", step);
        model.save_changes();
      },
    });
    const follow = () => {
      const place = page.runs[page.state.run].steps.indexOf(model.get("step"));
      if (place >= 0 && model.get("step") !== told) page.moveTo(place);
    };
    page.ready.then(() => model.on("change:step", follow));
    return () => { model.off("change:step", follow); page.close(); };
  },
};
