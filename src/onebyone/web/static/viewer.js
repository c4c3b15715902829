"use strict";
// The page of `onebyone view`: the image and a class's map as two layers of tiles, the detections on a canvas above.

const PALETTE = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF"];
const RAMPS = {
  inferno: ["#000004", "#1f0c48", "#550f6d", "#88226a", "#ba3655", "#e35933", "#f98c0a", "#f9c932", "#fcffa4"],
  viridis: ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"],
};
const TILE = 256;
const PATIENCE = 3000;  // milliseconds that detections wait for the image
const FOLLOW = 2000;  // milliseconds between questions to the server about a scan that is running
const $ = (id) => document.getElementById(id);
// states are by box and class, so that they stay when a slider moves or the scan goes on
const state = {
  facts: null, boxes: [], states: new Map(), selected: -1, window: null, pinned: false, mapItem: null, version: 0, grip: null,
};
let viewer;

async function ask(path, options) {
  const response = await fetch(path, options);
  const data = await response.json();
  if (!response.ok) throw new Error(data.error || response.statusText);
  return data;
}

function report(error) { $("error").textContent = error ? error.message : ""; }

const key = (box) => box.slice(0, 5).join(",");

function layer(url) {
  const [height, width] = state.facts.size;
  return { width, height, tileSize: TILE, minLevel: state.facts.min_level, maxLevel: state.facts.max_level, getTileUrl: url };
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
  tellProgress(facts.progress);
  const first = facts.classes.findIndex((name) => !facts.background.includes(name));
  $("label").value = Math.max(0, first);
  facts.colour_maps.forEach((name) => $("colours").add(new Option(name, name)));
  $("window-x").max = width; $("window-y").max = height;
  $("window-x").step = facts.stride[1]; $("window-y").step = facts.stride[0];
  const link = new URLSearchParams(location.hash.slice(1));
  readLink(link);
  viewer = OpenSeadragon({
    element: $("stage"), showNavigationControl: false, maxZoomPixelRatio: 16, animationTime: 0.4,
    minPixelRatio: 0.7,  // of the two levels around the screen's resolution the nearer one, in octaves
    gestureSettingsMouse: { clickToZoom: false }, gestureSettingsTouch: { clickToZoom: false },
    imageSmoothingEnabled: false, crossOriginPolicy: false, drawer: "canvas",
    tileSources: facts.has_image ? layer((level, x, y) => `image/${level}/${x}/${y}.jpg`) : layer(() => ""),
  });
  viewer.addHandler("open", () => {
    showMap();
    goTo(link);
    afterPicture(showBoxes);
  });
  for (const event of ["update-viewport", "resize"]) viewer.addHandler(event, draw);
  viewer.addHandler("animation-finish", remember);
  viewer.addHandler("canvas-click", (event) => {
    if (!event.quick || state.grip) return;
    const point = imagePoint(event.position);
    const hit = boxAt(point);
    if (hit >= 0) select(hit);
    state.pinned = true;
    showWindow(point, true);
  });
  // the pinned window is dragged by mouse or finger; everywhere else a drag moves the image
  viewer.addHandler("canvas-press", (event) => {
    const point = imagePoint(event.position);
    state.grip = state.pinned && state.window && inside(point, state.window.box) ? offsetInWindow(point) : null;
  });
  viewer.addHandler("canvas-drag", (event) => {
    if (!state.grip) return;
    event.preventDefaultAction = true;
    const point = imagePoint(event.position);
    showWindow(new OpenSeadragon.Point(point.x - state.grip.x, point.y - state.grip.y), true);
  });
  viewer.addHandler("canvas-drag-end", (event) => {
    if (!state.grip) return;
    event.preventDefaultAction = true;
    remember();
  });
  viewer.addHandler("canvas-release", () => setTimeout(() => { state.grip = null; }));
  $("stage").addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch" || event.buttons || state.pinned) return;
    const frame = $("stage").getBoundingClientRect();
    showWindow(imagePoint(new OpenSeadragon.Point(event.clientX - frame.left, event.clientY - frame.top)), true);
  });
  ramp();
}

// Run an action once the image is shown, or at the latest after PATIENCE: detections of a large scan occupy the server.
function afterPicture(action) {
  const image = viewer.world.getItemAt(0);
  let done = false;
  const once = () => { if (!done) { done = true; action(); } };
  if (image.getFullyLoaded()) once();
  else image.addOnceHandler("fully-loaded-change", once);
  setTimeout(once, PATIENCE);
}

function imagePoint(position) { return viewer.world.getItemAt(0).viewerElementToImageCoordinates(position); }

function readLink(link) {
  for (const id of ["label", "opacity", "colours", "threshold", "iou"]) {
    if (link.has(id)) $(id).value = link.get(id);
  }
}

// Show the part of the image and the window that an address names.
function goTo(link) {
  const item = viewer.world.getItemAt(0), number = (name) => Number(link.get(name));
  if (link.has("x")) {
    viewer.viewport.zoomTo(item.imageToViewportZoom(number("zoom")), null, true);
    viewer.viewport.panTo(item.imageToViewportCoordinates(number("x"), number("y")), true);
  }
  if (link.has("wx")) pin(number("wx"), number("wy"));
}

const inside = (point, box) => point.x >= box[0] && point.x < box[2] && point.y >= box[1] && point.y < box[3];

// A point relative to the point by which the server names the window: its middle.
function offsetInWindow(point) {
  const [x1, y1, x2, y2] = state.window.box;
  return new OpenSeadragon.Point(point.x - (x1 + x2) / 2, point.y - (y1 + y2) / 2);
}

// Keep the window whose first pixel is nearest to (x, y).
function pin(x, y) {
  const [h, w] = state.facts.window;
  state.pinned = true;
  showWindow(new OpenSeadragon.Point(x + w / 2, y + h / 2), true);
}

// The layer of the map. The one before it stays below until the new one is loaded, so that nothing flickers.
function showMap() {
  if (!viewer) return;
  const label = $("label").value, colours = $("colours").value, version = state.version, before = state.mapItem;
  state.mapItem = null;
  viewer.addTiledImage({
    tileSource: layer((level, x, y) => `map/${label}/${level}/${x}/${y}.png?colours=${colours}&v=${version}`),
    opacity: before ? 0 : Number($("opacity").value),
    preload: true,
    success: (event) => {
      const item = event.item;
      if (state.mapItem) { viewer.world.removeItem(item); return; }  // a later one came first
      state.mapItem = item;
      const swap = () => {
        if (before && viewer.world.getIndexOfItem(before) >= 0) viewer.world.removeItem(before);
        if (state.mapItem === item) item.setOpacity(Number($("opacity").value));
      };
      if (!before) return;
      if (item.getFullyLoaded()) swap();
      else item.addOnceHandler("fully-loaded-change", swap);
    },
  });
}

function tellProgress(progress) {
  state.version = progress.version;
  $("progress").hidden = progress.finished;
  $("progress-bar").value = progress.done; $("progress-bar").max = progress.total;
  const share = Math.floor(100 * progress.done / progress.total);
  $("progress-text").textContent =
    `The scan is not complete: ${progress.done.toLocaleString()} of ${progress.total.toLocaleString()} blocks (${share} %).`;
}

async function follow() {
  if (!state.facts.progress.finished) {
    try {
      const progress = await ask("progress.json"), changed = progress.version !== state.version;
      state.facts.progress = progress;
      tellProgress(progress);
      if (changed) { showMap(); await showBoxes(); }
    } catch (error) { report(error); }
    setTimeout(follow, FOLLOW);
  }
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
    const selected = state.selected < 0 ? "" : key(state.boxes[state.selected]);
    state.boxes = found.boxes;
    state.selected = state.boxes.findIndex((box) => key(box) === selected);
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
    const status = state.states.get(key(box));
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
    pen.setLineDash(state.pinned ? [] : [6, 4]);
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
  if (document.activeElement !== $("window-x")) $("window-x").value = x1;
  if (document.activeElement !== $("window-y")) $("window-y").value = y1;
  const crop = found.crop;
  $("window-scores").hidden = !found.scores;
  if (!found.scores) { $("window-crop").textContent = "This window is not scanned yet."; draw(); return; }
  $("crop-column").hidden = !(crop && crop.scores);
  const order = found.probabilities.map((p, k) => [p, k]).sort((a, b) => b[0] - a[0]).slice(0, 6);
  $("window-scores").tBodies[0].replaceChildren(...order.map(([p, k]) => {
    const row = document.createElement("tr");
    const name = row.insertCell(), bar = row.insertCell(), value = row.insertCell(), mark = document.createElement("div");
    name.textContent = state.facts.classes[k];
    mark.style.width = `${Math.max(1, Math.round(70 * p))}px`;
    bar.append(mark);
    value.textContent = p.toFixed(4);
    if (crop && crop.scores) row.insertCell().textContent = crop.probabilities[k].toFixed(4);
    return row;
  }));
  if (!crop) $("window-crop").textContent = "";
  else if (crop.reason) $("window-crop").textContent = crop.reason;
  else {
    const note = state.facts.exact ? "rounding only: the network is exact" : "the network pads, so crops differ near their border";
    $("window-crop").textContent = `Cropped and run alone, the scores differ by at most ${crop.max_difference.toExponential(1)} (${note}).`;
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
  const judged = key(state.boxes[state.selected]);
  if (state.states.get(judged) === status) state.states.delete(judged);
  else state.states.set(judged, status);
  select(state.selected + 1);
}

function tellReview() {
  const values = state.boxes.map((box) => state.states.get(key(box))).filter((status) => status);
  const accepted = values.filter((v) => v === "accepted").length;
  const selected = state.selected < 0 ? "" : `Detection ${state.selected + 1} of ${state.boxes.length}. `;
  $("review").textContent = `${selected}${accepted} accepted, ${values.length - accepted} rejected.`;
}

async function save(suffix) {
  const query = `threshold=${$("threshold").value}&iou=${$("iou").value}&suffix=${suffix}`;
  try {
    const done = await ask(`review?${query}`, {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({ states: state.boxes.filter((box) => state.states.has(key(box)))
        .map((box) => [...box.slice(0, 5), state.states.get(key(box))]) }),
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
  if (state.pinned && state.window) {
    link.set("wx", state.window.box[0]);
    link.set("wy", state.window.box[1]);
  }
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
for (const id of ["window-x", "window-y"]) $(id).addEventListener("input", () => {
  if (viewer && $(id).value !== "") pin(Number($("window-x").value), Number($("window-y").value));
});
for (const id of ["window-x", "window-y"]) $(id).addEventListener("change", remember);
$("release").addEventListener("click", () => { state.pinned = false; remember(); draw(); });
window.addEventListener("hashchange", () => {
  if (!viewer) return;
  const link = new URLSearchParams(location.hash.slice(1));
  readLink(link);
  Object.values(tell).forEach((show) => show());
  ramp();
  showMap();
  showBoxes();
  goTo(link);
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.tagName === "SELECT" || event.target.type === "number";
  if (event.ctrlKey || event.metaKey || event.altKey || typing) return;
  const action = {
    n: () => select(state.selected + 1), p: () => select(state.selected - 1),
    a: () => judge("accepted"), r: () => judge("rejected"),
    Escape: () => $("release").click(),
  }[event.key];
  if (action) { event.preventDefault(); action(); }
});

ask("facts.json").then((facts) => { start(facts); Object.values(tell).forEach((show) => show()); follow(); }).catch(report);
