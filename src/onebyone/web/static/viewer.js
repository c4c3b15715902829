"use strict";
// The page of `onebyone view`: the image and a class's map as two layers of tiles, the detections on a canvas above.

const PALETTE = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF"];
const RAMPS = {
  inferno: ["#000004", "#1f0c48", "#550f6d", "#88226a", "#ba3655", "#e35933", "#f98c0a", "#f9c932", "#fcffa4"],
  viridis: ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"],
};
const TILE = 256;
const $ = (id) => document.getElementById(id);
const state = { facts: null, boxes: [], states: new Map(), selected: -1, window: null, pinned: false, mapItem: null };
let viewer;

async function ask(path, options) {
  const response = await fetch(path, options);
  const data = await response.json();
  if (!response.ok) throw new Error(data.error || response.statusText);
  return data;
}

function report(error) { $("error").textContent = error ? error.message : ""; }

function layer(url) {
  const [height, width] = state.facts.size;
  return { width, height, tileSize: TILE, minLevel: 0, maxLevel: state.facts.max_level, getTileUrl: url };
}

function start(facts) {
  state.facts = facts;
  document.title = `${facts.name} – onebyone viewer`;
  $("name").textContent = facts.name;
  const [height, width] = facts.size;
  $("summary").textContent = `${width.toLocaleString()}×${height.toLocaleString()} pixels, `
    + `${facts.positions.map((n) => n.toLocaleString()).join("×")} positions at stride ${facts.stride.join("×")}, `
    + `window ${facts.window.join("×")}. Scores: ${facts.scores}.`;
  facts.classes.forEach((name, k) => $("label").add(new Option(name, k)));
  const first = facts.classes.findIndex((name) => !facts.background.includes(name));
  $("label").value = Math.max(0, first);
  facts.colour_maps.forEach((name) => $("colours").add(new Option(name, name)));
  const link = new URLSearchParams(location.hash.slice(1));
  for (const id of ["label", "opacity", "colours", "threshold", "iou"]) {
    if (link.has(id)) $(id).value = link.get(id);
  }
  viewer = OpenSeadragon({
    element: $("stage"), showNavigationControl: false, maxZoomPixelRatio: 16, animationTime: 0.4,
    gestureSettingsMouse: { clickToZoom: false }, gestureSettingsTouch: { clickToZoom: false },
    imageSmoothingEnabled: false, crossOriginPolicy: false, drawer: "canvas",
    tileSources: facts.has_image ? layer((level, x, y) => `image/${level}/${x}/${y}.jpg`) : layer(() => ""),
  });
  viewer.addHandler("open", () => {
    showMap();
    if (link.has("x")) {
      const item = viewer.world.getItemAt(0);
      viewer.viewport.zoomTo(item.imageToViewportZoom(Number(link.get("zoom"))), null, true);
      viewer.viewport.panTo(item.imageToViewportCoordinates(Number(link.get("x")), Number(link.get("y"))), true);
    }
  });
  for (const event of ["update-viewport", "resize"]) viewer.addHandler(event, draw);
  viewer.addHandler("animation-finish", remember);
  viewer.addHandler("canvas-click", (event) => {
    if (!event.quick) return;
    const point = imagePoint(event.position);
    const hit = boxAt(point);
    if (hit >= 0) select(hit);
    state.pinned = true;
    showWindow(point, true);
  });
  $("stage").addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch" || event.buttons) return;
    state.pinned = false;
    const frame = $("stage").getBoundingClientRect();
    showWindow(imagePoint(new OpenSeadragon.Point(event.clientX - frame.left, event.clientY - frame.top)), true);
  });
  ramp();
  showBoxes();
}

function imagePoint(position) { return viewer.world.getItemAt(0).viewerElementToImageCoordinates(position); }

function showMap() {
  if (!viewer) return;
  if (state.mapItem) viewer.world.removeItem(state.mapItem);
  state.mapItem = null;
  const label = $("label").value, colours = $("colours").value;
  viewer.addTiledImage({
    tileSource: layer((level, x, y) => `map/${label}/${level}/${x}/${y}.png?colours=${colours}`),
    opacity: Number($("opacity").value),
    success: (event) => { state.mapItem = event.item; },
  });
}

function ramp() { $("ramp").style.background = `linear-gradient(90deg, ${RAMPS[$("colours").value].join(",")})`; }

let boxesAsked = 0;
async function showBoxes() {
  if (!viewer) return;  // the page is still loading; start() calls it
  const asked = ++boxesAsked;
  $("total").textContent = "…";
  const query = `threshold=${$("threshold").value}&iou=${$("iou").value}`;
  try {
    const found = await ask(`boxes.json?${query}`);
    if (asked !== boxesAsked) return;  // a later request is on its way
    report(null);
    state.boxes = found.boxes;
    state.states.clear();
    state.selected = -1;
    const shown = found.boxes.length < found.total ? ` (the best ${found.boxes.length.toLocaleString()} are shown)` : "";
    $("total").textContent = `${found.total.toLocaleString()}${shown}`;
    const rows = Object.entries(found.counts).map(([name, count]) => {
      const row = document.createElement("li"), mark = document.createElement("i"), number = document.createElement("span");
      mark.style.background = PALETTE[state.facts.classes.indexOf(name) % PALETTE.length];
      number.textContent = count.toLocaleString();
      row.append(mark, name, number);
      return row;
    });
    $("counts").replaceChildren(...rows);
    tellReview();
  } catch (error) { report(error); }
  draw();
}

function draw() {
  if (!viewer) return;
  const canvas = $("boxes"), ratio = window.devicePixelRatio || 1, item = viewer.world.getItemAt(0);
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== width * ratio || canvas.height !== height * ratio) {
    canvas.width = width * ratio; canvas.height = height * ratio;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (!item) return;
  const origin = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
  const unit = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(1, 0)).x - origin.x;
  const place = (box) => [origin.x + box[0] * unit, origin.y + box[1] * unit, (box[2] - box[0]) * unit, (box[3] - box[1]) * unit];
  state.boxes.forEach((box, k) => {
    const [x, y, w, h] = place(box);
    if (x > width || y > height || x + w < 0 || y + h < 0) return;
    const status = state.states.get(k);
    pen.globalAlpha = status === "rejected" ? 0.35 : 1;
    pen.setLineDash(status === "rejected" ? [4, 4] : []);
    frame(pen, x, y, w, h, PALETTE[box[4] % PALETTE.length], k === state.selected ? 4 : 2);
    if (status === "accepted") { pen.fillStyle = "#2da44e"; pen.fillRect(x, y, 9, 9); }
    if (w > 46) tag(pen, x, y, `${state.facts.classes[box[4]]} ${box[5].toFixed(2)}`);
  });
  pen.globalAlpha = 1;
  pen.setLineDash([]);
  if (state.window) {
    const [x, y, w, h] = place(state.window.box);
    pen.setLineDash([6, 4]);
    frame(pen, x, y, w, h, "#ffffff", 2);
    pen.setLineDash([]);
  }
}

function frame(pen, x, y, w, h, colour, line) {
  pen.lineWidth = line + 2; pen.strokeStyle = "#000"; pen.strokeRect(x, y, w, h);
  pen.lineWidth = line; pen.strokeStyle = colour; pen.strokeRect(x, y, w, h);
}

function tag(pen, x, y, text) {
  pen.font = "12px system-ui, sans-serif";
  const width = pen.measureText(text).width + 8;
  pen.fillStyle = "#000c"; pen.fillRect(x, y - 17, width, 16);
  pen.fillStyle = "#fff"; pen.fillText(text, x + 4, y - 5);
}

let windowAsked = 0, windowBusy = false, windowNext = null;
async function showWindow(point, compare) {
  const [height, width] = state.facts.size;
  if (point.x < 0 || point.y < 0 || point.x > width || point.y > height) return;
  if (windowBusy) { windowNext = [point, compare]; return; }
  windowBusy = true;
  const asked = ++windowAsked;
  try {
    const crop = compare && state.facts.has_network ? "&compare=1" : "";
    const found = await ask(`window.json?x=${point.x}&y=${point.y}${crop}`);
    if (asked === windowAsked) tellWindow(found);
  } catch (error) { report(error); }
  windowBusy = false;
  if (windowNext) { const [p, c] = windowNext; windowNext = null; showWindow(p, c); }
}

function tellWindow(found) {
  state.window = found;
  const [x1, y1, x2, y2] = found.box;
  $("window-place").textContent = `x ${x1}–${x2}, y ${y1}–${y2}; position (${found.position.join(", ")})`;
  const order = found.probabilities.map((p, k) => [p, k]).sort((a, b) => b[0] - a[0]).slice(0, 6);
  $("window-scores").tBodies[0].replaceChildren(...order.map(([p, k]) => {
    const row = document.createElement("tr");
    const name = row.insertCell(), bar = row.insertCell(), value = row.insertCell(), mark = document.createElement("div");
    name.textContent = state.facts.classes[k];
    mark.style.width = `${Math.max(1, Math.round(70 * p))}px`;
    bar.append(mark);
    value.textContent = p.toFixed(4);
    return row;
  }));
  const crop = found.crop;
  if (!crop) $("window-crop").textContent = "";
  else if (crop.reason) $("window-crop").textContent = crop.reason;
  else {
    const note = state.facts.exact ? "rounding only: the network is exact" : "the network pads, so crops differ near their border";
    $("window-crop").textContent = `Cropped and run alone: largest difference ${crop.max_difference.toExponential(1)} (${note}).`;
  }
  draw();
}

function boxAt(point) {
  for (let k = 0; k < state.boxes.length; k++) {
    const [x1, y1, x2, y2] = state.boxes[k];
    if (point.x >= x1 && point.x < x2 && point.y >= y1 && point.y < y2) return k;
  }
  return -1;
}

function select(k) {
  if (!viewer || !state.boxes.length) return;
  state.selected = (k + state.boxes.length) % state.boxes.length;
  const [x1, y1, x2, y2] = state.boxes[state.selected], item = viewer.world.getItemAt(0);
  const margin = 1.5 * Math.max(x2 - x1, y2 - y1);
  const target = item.imageToViewportRectangle(x1 - margin, y1 - margin, x2 - x1 + 2 * margin, y2 - y1 + 2 * margin);
  if (!viewer.viewport.getBounds(true).containsPoint(target.getCenter())) viewer.viewport.fitBounds(target);
  tellReview();
  draw();
}

function judge(status) {
  if (state.selected < 0) { select(0); return; }
  if (state.states.get(state.selected) === status) state.states.delete(state.selected);
  else state.states.set(state.selected, status);
  select(state.selected + 1);
}

function tellReview() {
  const values = [...state.states.values()];
  const accepted = values.filter((v) => v === "accepted").length;
  const selected = state.selected < 0 ? "" : `Detection ${state.selected + 1} of ${state.boxes.length}. `;
  $("review").textContent = `${selected}${accepted} accepted, ${values.length - accepted} rejected.`;
}

async function save(suffix) {
  const query = `threshold=${$("threshold").value}&iou=${$("iou").value}&suffix=${suffix}`;
  try {
    const done = await ask(`review?${query}`, {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({ states: Object.fromEntries(state.states) }),
    });
    $("review").textContent = `Wrote ${done.file}: ${done.kept} kept, ${done.rejected} rejected.`;
  } catch (error) { report(error); }
}

function remember() {
  if (!viewer) return;
  const item = viewer.world.getItemAt(0);
  if (!item) return;
  const centre = item.viewportToImageCoordinates(viewer.viewport.getCenter(true));
  const zoom = item.viewportToImageZoom(viewer.viewport.getZoom(true));
  const link = new URLSearchParams({
    x: Math.round(centre.x), y: Math.round(centre.y), zoom: zoom.toPrecision(4), label: $("label").value,
    opacity: $("opacity").value, colours: $("colours").value, threshold: $("threshold").value, iou: $("iou").value,
  });
  history.replaceState(null, "", `#${link}`);
}

const tell = {
  opacity: () => { $("opacity-value").textContent = `${Math.round(100 * $("opacity").value)} %`; },
  threshold: () => { $("threshold-value").textContent = Number($("threshold").value).toFixed(2); },
  iou: () => { $("iou-value").textContent = Number($("iou").value).toFixed(2); },
};
for (const [id, show] of Object.entries(tell)) $(id).addEventListener("input", show);
$("opacity").addEventListener("input", () => { if (state.mapItem) state.mapItem.setOpacity(Number($("opacity").value)); remember(); });
$("label").addEventListener("change", () => { showMap(); remember(); });
$("colours").addEventListener("change", () => { ramp(); showMap(); remember(); });
let waiting = 0;
for (const id of ["threshold", "iou"]) $(id).addEventListener("input", () => {
  clearTimeout(waiting);  // while a slider moves, only its last value is asked for
  waiting = setTimeout(() => { showBoxes(); remember(); }, 120);
});
$("previous").addEventListener("click", () => select(state.selected - 1));
$("next").addEventListener("click", () => select(state.selected + 1));
$("accept").addEventListener("click", () => judge("accepted"));
$("reject").addEventListener("click", () => judge("rejected"));
$("save-coco").addEventListener("click", () => save(".json"));
$("save-geojson").addEventListener("click", () => save(".geojson"));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const action = {
    n: () => select(state.selected + 1), p: () => select(state.selected - 1),
    a: () => judge("accepted"), r: () => judge("rejected"),
  }[event.key];
  if (action) { event.preventDefault(); action(); }
});

ask("facts.json").then((facts) => { start(facts); Object.values(tell).forEach((show) => show()); }).catch(report);
