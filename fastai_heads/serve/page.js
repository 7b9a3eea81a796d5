"use strict";
// Asks the service what the network reads, makes a field for each input, and draws what the heads answer.

const COLOURS = [
  "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#7f3fbf", "#8a5a2b", "#7fbf3f", "#e6194b",
];
const VOID = 255; // the code of a pixel that the network has not seen
const at = (id) => document.getElementById(id);
const values = {}; // input → what was chosen: a File, a text, a row
let inputs = [];
let picture = null; // the image that answers are drawn on

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").className = isError ? "error" : "";
}

function imageField(name) {
  const chooser = make("input", { type: "file", accept: "image/*" });
  const label = make("label", { className: "drop" }, `${name}: drop a picture here, or choose one`, chooser);
  const take = (file) => {
    if (!file) return;
    values[name] = file;
    if (inputs.length === 1) ask(); else say(`${name}: ${file.name}`);
  };
  chooser.addEventListener("change", () => take(chooser.files[0]));
  label.addEventListener("dragover", (event) => { event.preventDefault(); label.classList.add("over"); });
  label.addEventListener("dragleave", () => label.classList.remove("over"));
  label.addEventListener("drop", (event) => {
    event.preventDefault();
    label.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  return label;
}

function textField(name) {
  const area = make("textarea", { rows: 3 });
  area.addEventListener("input", () => { values[name] = area.value; });
  return make("label", {}, name, area);
}

function rowField(name, columns) {
  const row = (values[name] = {});
  const fields = Object.entries(columns).map(([column, isNumber]) => {
    row[column] = null;
    const field = make("input", { type: "text", inputMode: isNumber ? "decimal" : "text" });
    field.addEventListener("input", () => {
      const number = Number(field.value);
      row[column] = field.value === "" ? null : isNumber && !Number.isNaN(number) ? number : field.value;
    });
    return make("label", {}, column, field);
  });
  return make("fieldset", {}, make("legend", { textContent: name }), ...fields);
}

function asBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// The picture as the network reads it: as it is stored, not turned as a JPEG's EXIF says. null where it cannot be shown.
async function load(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const parts = [bytes.subarray(0, 2)];
  let at = 2;
  if (bytes[0] === 0xff && bytes[1] === 0xd8) {
    while (bytes[at] === 0xff && bytes[at + 1] !== 0xda) {
      const next = at + 2 + (bytes[at + 2] << 8) + bytes[at + 3];
      if (bytes[at + 1] !== 0xe1) parts.push(bytes.subarray(at, next));
      at = next;
    }
  }
  parts.push(bytes.subarray(at));
  return createImageBitmap(new Blob(parts, { type: file.type })).catch(() => null);
}

async function ask() {
  say("…");
  at("results").hidden = true;
  at("answers").replaceChildren();
  const item = {};
  picture = null;
  for (const { name, kind } of inputs) {
    const value = values[name];
    if (kind === "image" && value) {
      item[name] = await asBase64(value);
      picture = picture || (await load(value));
    } else {
      item[name] = value === undefined || value === "" ? null : value;
    }
  }
  const body = JSON.stringify({ items: [inputs.length === 1 ? item[inputs[0].name] : item] });
  try {
    const response = await fetch("predict", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    const answer = await response.json();
    if (!response.ok) return say(answer.error, true);
    say("");
    await show(answer.answers[0]);
  } catch (error) {
    say(`the service did not answer: ${error.message}`, true);
  }
}

const round = (number) => Number(number.toPrecision(4)).toString();

function bar(label, probability) {
  return make("div", {}, make("meter", { value: probability, max: 1 }), `${label} ${(100 * probability).toFixed(1)} %`);
}

const colourOf = (code) => COLOURS[(code + COLOURS.length - 1) % COLOURS.length];

function describe(kind, value, colour, codes) {
  const key = (background = colour) => {
    const mark = make("span", { className: "key" });
    mark.style.background = background;
    return mark;
  };
  if (kind === "label") return [bar(value.label, value.probability)];
  if (kind === "tags") return Object.entries(value.probabilities).map(([tag, p]) => bar(tag, p));
  if (kind === "mask") {
    if (!codes) return [`${value.png.length} masks`];
    const counts = {};
    for (const code of codes.data) counts[code] = (counts[code] || 0) + 1;
    return Object.entries(counts).filter(([code]) => +code !== VOID).map(([code, n]) => {
      const share = `${(value.vocab || [])[code] ?? code} ${((100 * n) / codes.data.length).toFixed(1)} %`;
      return make("div", {}, key(+code ? colourOf(+code) : "transparent"), share);
    });
  }
  if (kind === "detections") {
    if (!value.boxes.length) return ["nothing found"];
    return value.labels.map((name, i) => make("div", {}, key(), `${name} ${(100 * value.scores[i]).toFixed(0)} %`));
  }
  const flat = [value].flat(Infinity);
  const text = flat.every((n) => typeof n === "number") ? flat.map(round).join(", ") : JSON.stringify(value);
  return kind === "box" || kind === "points" ? [key(), text] : [text];
}

function drawBox(context, [x0, y0, x1, y1], colour, text) {
  context.strokeStyle = context.fillStyle = colour;
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  if (text) context.fillText(text, x0, Math.max(y0 - context.lineWidth * 2, context.lineWidth * 6));
}

// The codes of a mask, which are the grey values of its picture; null for several masks.
async function readMask(mask) {
  if (Array.isArray(mask.png)) return null;
  const bytes = Uint8Array.from(atob(mask.png), (c) => c.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const { width, height } = image;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(image, 0, 0);
  return { width, height, data: context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 0) };
}

function drawMask(context, { width, height, data }) {
  const layer = new OffscreenCanvas(width, height);
  const inner = layer.getContext("2d");
  const pixels = inner.createImageData(width, height);
  data.forEach((code, i) => {
    const colour = colourOf(code);
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = parseInt(colour.slice(1 + 2 * c, 3 + 2 * c), 16);
    pixels.data[4 * i + 3] = code === 0 || code === VOID ? 0 : 130;
  });
  inner.putImageData(pixels, 0, 0);
  context.drawImage(layer, 0, 0);
}

async function show(answers) {
  const canvas = at("picture");
  canvas.hidden = !picture;
  const context = canvas.getContext("2d");
  const [width, height] = picture ? [picture.width, picture.height] : [0, 0];
  const zoom = picture ? Math.max(1, Math.min(8, Math.floor(480 / Math.max(width, height)))) : 1;
  if (picture) {
    canvas.width = width * zoom;
    canvas.height = height * zoom;
    context.imageSmoothingEnabled = false;
    context.scale(zoom, zoom);
    context.drawImage(picture, 0, 0);
    const unit = Math.max(width, height) / 240;
    context.lineWidth = unit;
    context.font = `bold ${7 * unit}px sans-serif`;
  }
  const rows = [];
  let next = 0;
  for (const [name, value] of Object.entries(answers)) {
    const kind = kinds[name];
    const colour = COLOURS[next++ % COLOURS.length];
    const codes = kind === "mask" ? await readMask(value) : null;
    const said = describe(kind, value, colour, codes);
    rows.push(make("tr", {}, make("td", { textContent: name }), make("td", {}, ...said)));
    if (!picture) continue;
    if (codes) drawMask(context, codes);
    if (kind === "box") drawBox(context, [value].flat(Infinity), colour);
    if (kind === "detections") value.boxes.forEach((box, i) => drawBox(context, box, colour, value.labels[i]));
    if (kind === "points") {
      const flat = [value].flat(Infinity);
      context.fillStyle = colour;
      for (let i = 0; i + 1 < flat.length; i += 2) {
        context.beginPath();
        context.arc(flat[i], flat[i + 1], 2 * context.lineWidth, 0, 2 * Math.PI);
        context.fill();
      }
    }
  }
  at("answers").replaceChildren(...rows); // all at once, when all is drawn
  at("results").hidden = false;
}

let kinds = {}; // head → what kind of answer it gives

async function start() {
  const about = await (await fetch("about")).json();
  at("name").textContent = about.name;
  document.title = about.name;
  inputs = about.inputs;
  kinds = about.heads;
  const make_field = { image: imageField, text: textField, row: (name, columns) => rowField(name, columns) };
  at("inputs").append(...inputs.map(({ name, kind, columns }) => make_field[kind](name, columns)));
  const only_image = inputs.length === 1 && inputs[0].kind === "image";
  if (!only_image) at("inputs").append(make("button", { textContent: "Predict" }));
  at("inputs").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
}

start().catch((error) => say(`the service did not answer: ${error.message}`, true));
