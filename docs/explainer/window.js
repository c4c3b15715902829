// View 3: a window on the page, its scores from the crop and from the map, and the work of both.
"use strict";

(() => {
  const {
    at, colours, columns, convolutions, crop, data, flattened, image, number, one, onArrows, onDrag, pass, picture,
    rows, select, sharp, signed, small, stride, watchers,
  } = Explainer;
  const view = one("#window");
  const [page, map] = [one("#window-page"), one("#window-map")];
  const shown = one("#window-class");
  const fault = one("#window-fault");
  const body = one("#window-scores tbody");
  const live = one("#window-live");
  const { classes, page: { height, width } } = data;
  const background = classes.length - 1;
  const tail = convolutions.slice(flattened); // the layers that were fully connected
  const middle = data.window / 2 - stride / 2; // from a window's corner to the square of its position
  const photograph = picture(Network.bytes(data.page.pixels), height, width, (v) => [v, v, v, 255]);
  const seen = new Set();
  const work = { macs: 0, dense: 0, one: 0 };
  let maps = null; // the outputs of all layers on the whole page
  let scores = null; // of the map, with the fault if one is injected
  let heat = null;

  // scores --------------------------------------------------------------------------------------------------

  const cells = classes.map((name) => {
    const row = body.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.append(Object.assign(document.createElement("span"), { className: "share" }), name);
    row.append(head);
    return [head.firstChild, ...["crop", "map", "difference"].map((kind) => Object.assign(row.insertCell(), { className: kind }))];
  });

  // The largest difference that rounding explains: both forms start from the same bits of the flattened map.
  function allowed(features) {
    return Network.bounds(tail, features).values.map((bound) => 2 * bound);
  }

  function compare() {
    const spent = { macs: 0 };
    const layersOfCrop = crop(at.row, at.column, spent);
    const key = at.row * columns + at.column;
    if (!seen.has(key)) { seen.add(key); work.macs += spent.macs; }
    work.one = spent.macs;
    const cropped = [...layersOfCrop.at(-1).values];
    const limits = allowed(layersOfCrop[flattened - 1]);
    const dense = scores && Network.column(scores, at.row, at.column);
    const shares = Network.softmax(cropped);
    const best = shares.indexOf(Math.max(...shares));
    let [largest, outside] = [0, 0];
    cells.forEach(([bar, inCrop, inMap, apart], k) => {
      bar.style.width = `${100 * shares[k]}%`;
      bar.parentNode.parentNode.classList.toggle("best", k === best);
      inCrop.textContent = signed(cropped[k], 5);
      if (!dense) return;
      const difference = Math.abs(cropped[k] - dense[k]);
      largest = Math.max(largest, difference);
      outside += difference > limits[k];
      inMap.textContent = signed(dense[k], 5);
      apart.textContent = small(difference);
      apart.classList.toggle("wrong", difference > limits[k]);
    });
    const where = `Window at x = ${at.column * stride}, y = ${at.row * stride} pixels, position (${at.row}, ${at.column}) of the map: `
      + `${best === background ? "no digit" : `digit ${classes[best]}`}, probability ${(100 * shares[best]).toFixed(1)} %. `;
    const bound = small(Math.min(...limits));
    const verdict = outside
      ? `Crop and map DIFFER: by up to ${small(largest)}, and rounding explains at most ${bound}.`
      : `Crop and map agree: largest difference ${small(largest)}, and rounding explains up to ${bound}.`;
    live.textContent = where + (dense ? verdict : "The map is being computed.");
    view.classList.toggle("differs", outside > 0);
    for (const [name, value] of Object.entries({ largest, bound: Math.min(...limits), outside })) view.dataset[name] = value;
    page.setAttribute("aria-valuenow", key);
    page.setAttribute("aria-valuetext", `row ${at.row}, column ${at.column}: ${best === background ? "no digit" : classes[best]}`);
    map.setAttribute("aria-valuenow", key);
    map.setAttribute("aria-valuetext", page.getAttribute("aria-valuetext"));
  }

  // work ----------------------------------------------------------------------------------------------------

  function count() {
    const total = rows * columns;
    const all = total * work.one;
    one("#work-crops").textContent = `${number(seen.size)} window${seen.size === 1 ? "" : "s"}: ${number(work.macs)}`;
    one("#work-all").textContent = `${number(total)} windows: ${number(all)}`;
    if (!work.dense) return;
    one("#work-dense").textContent = `${number(total)} windows: ${number(work.dense)}`;
    one("#work-ratio").textContent = `${(all / work.dense).toFixed(1)}×`;
    const parity = Math.ceil(work.dense / work.one);
    one("#work-parity").textContent = `From ${number(parity)} windows on, the one pass is cheaper than cropping.`;
  }

  // drawing -------------------------------------------------------------------------------------------------

  const heightOf = (wide) => (wide * height) / width;
  function outline(pen, scale, colour) {
    const corner = [at.column * stride * scale, at.row * stride * scale];
    for (const [style, thick] of [[colour("halo"), 5], [colour("window"), 2.5]]) {
      pen.strokeStyle = style;
      pen.lineWidth = thick;
      pen.strokeRect(...corner, data.window * scale, data.window * scale);
    }
  }
  const drawPage = sharp(page, heightOf, (pen, wide, high) => {
    pen.drawImage(photograph, 0, 0, wide, high);
    outline(pen, wide / width, colours(view));
  });
  const drawMap = sharp(map, heightOf, (pen, wide, high) => {
    const scale = wide / width;
    pen.drawImage(photograph, 0, 0, wide, high);
    pen.fillStyle = "rgba(0, 0, 0, 0.72)";
    pen.fillRect(0, 0, wide, high);
    pen.imageSmoothingEnabled = false;
    if (heat) pen.drawImage(heat, middle * scale, middle * scale, columns * stride * scale, rows * stride * scale);
    const colour = colours(view);
    outline(pen, scale, colour);
    pen.fillStyle = colour("window");
    pen.fillRect((at.column * stride + middle) * scale - 1, (at.row * stride + middle) * scale - 1, stride * scale + 2, stride * scale + 2);
  });

  // The probability of the chosen class, or of any digit, at every position.
  function paint() {
    if (!scores) return;
    const size = rows * columns;
    const chosen = Number(shown.value);
    heat = picture(new Float32Array(size).map((_, i) => {
      const shares = Network.softmax(classes.map((_name, k) => scores.values[k * size + i]));
      return chosen < 0 ? 1 - shares[background] : shares[chosen];
    }), rows, columns, (v) => [255, 90 + 150 * v, 40 + 60 * v, 255 * Math.sqrt(v)]);
    drawMap();
  }

  // faults --------------------------------------------------------------------------------------------------

  // Copies of the replaced layers with one error each; the crop keeps the right weights.
  const FAULTS = {
    none: (layers) => layers,
    weight(layers) { // of the last layer, the weight that contributes most to a score of the selected window
      const last = layers.at(-1);
      const hidden = Network.column(maps.at(-2), at.row, at.column);
      const size = (k) => Math.abs(last.weight[k] * hidden[k % hidden.length]);
      const weight = last.weight.slice();
      const largest = weight.reduce((most, _w, k) => (size(k) > size(most) ? k : most), 0);
      weight[largest] *= -1;
      return [...layers.slice(0, -1), { ...last, weight }];
    },
    order(layers) { // as if the map had been flattened with its channels last
      const [outputs, channels, high, wide] = layers[0].shape;
      const size = channels * high * wide;
      const weight = layers[0].weight.map((_, k) => {
        const [c, place] = [Math.floor((k % size) / (high * wide)), k % (high * wide)];
        return layers[0].weight[k - (k % size) + place * channels + c];
      });
      return [{ ...layers[0], weight, shape: [outputs, channels, high, wide] }, ...layers.slice(1)];
    },
    bias: (layers) => [...layers.slice(0, -1), { ...layers.at(-1), bias: layers.at(-1).bias.map(() => 0) }],
  };

  async function inject() {
    const changed = await pass(FAULTS[fault.value](tail), maps[flattened - 1]);
    scores = changed.maps.at(-1);
    paint();
    compare();
  }

  // every window --------------------------------------------------------------------------------------------

  // Crops every window, a few at a time, and compares all scores with those of the map.
  async function cropAll() {
    const [button, bar, told] = [one("#every-run"), one("#every-progress"), one("#every-result")];
    button.disabled = true;
    bar.hidden = false;
    bar.max = rows;
    const size = rows * columns;
    const limits = Network.bounds(tail, maps[flattened - 1]).values;
    let [milliseconds, largest, outside, macs] = [0, 0, 0, 0];
    for (let row = 0; row < rows; row++) {
      const begun = performance.now();
      for (let column = 0; column < columns; column++) {
        const spent = { macs: 0 };
        const cropped = crop(row, column, spent).at(-1).values;
        macs += spent.macs;
        for (let k = 0; k < classes.length; k++) {
          const place = k * size + row * columns + column;
          const difference = Math.abs(cropped[k] - scores.values[place]);
          largest = Math.max(largest, difference);
          outside += difference > 2 * limits[place];
        }
      }
      milliseconds += performance.now() - begun;
      bar.value = row + 1;
      await new Promise((resume) => { setTimeout(resume); });
    }
    const agreed = classes.length * size - outside;
    told.textContent = `${number(agreed)} of ${number(classes.length * size)} scores agree within their rounding bounds; the largest difference is `
      + `${small(largest)}. ${number(macs)} multiply-adds in ${(milliseconds / 1000).toFixed(1)} s for the crops, ${number(work.dense)} in `
      + `${(work.milliseconds / 1000).toFixed(2)} s for the one pass: ${(milliseconds / work.milliseconds).toFixed(0)} times as long.`;
    told.dataset.outside = outside;
    button.disabled = false;
    bar.hidden = true;
  }

  // controls ------------------------------------------------------------------------------------------------

  classes.forEach((name, k) => shown.add(new Option(k === background ? name : `digit ${name}`, k)));
  for (const canvas of [page, map]) {
    canvas.setAttribute("aria-valuemax", rows * columns - 1);
    onArrows(canvas, (down, right) => select(at.row + down, at.column + right));
    onDrag(canvas, (x, y) => select(
      Math.round((y * height - data.window / 2) / stride), Math.round((x * width - data.window / 2) / stride),
    ));
  }
  watchers.push(() => { compare(); count(); drawPage(); drawMap(); });
  shown.addEventListener("input", paint);
  fault.addEventListener("input", inject);
  one("#every-run").addEventListener("click", cropAll);

  const [x, y] = data.page.digits[0];
  select(Math.round(y / stride), Math.round(x / stride));
  // the map is computed when the page has been drawn
  requestAnimationFrame(() => setTimeout(async () => {
    const begun = performance.now();
    const computed = await pass(convolutions, image);
    work.milliseconds = performance.now() - begun;
    maps = computed.maps;
    scores = maps.at(-1);
    work.dense = computed.macs;
    for (const control of [fault, one("#every-run")]) control.disabled = false;
    paint();
    compare();
    count();
    document.dispatchEvent(new CustomEvent("explainer:map", { detail: maps }));
    view.dataset.ready = "true";
  }));
})();
