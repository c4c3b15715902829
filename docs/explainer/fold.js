// View 1: a neuron's row of weights folds into a filter, together with the map that the flatten had unrolled.
"use strict";

(() => {
  const { animation, at, clamp, colours, crop, features, flattened, layers, number, one, onArrows, onDrag, sharp, signed, watchers } = Explainer;
  const view = one("#fold");
  const canvas = one("canvas", view);
  const slider = one("#fold-share");
  const neuron = one("#fold-neuron");
  const live = one("#fold-live");
  const sums = { row: one("#fold-row-sum"), filter: one("#fold-filter-sum") };
  const layer = layers[flattened + 1];
  const { channels, height, width } = features;
  const count = channels * height * width;
  const side = 4; // rows and columns of tiles: one tile for each channel, eight in a row
  const perRow = 2 * side;
  const lines = Math.ceil(channels / perRow);
  let picked = 21;
  let values = features.values;

  neuron.max = layer.shape[0] - 1;
  const weights = () => layer.weight.subarray(neuron.value * count, (Number(neuron.value) + 1) * count);
  const position = (k) => [Math.floor(k / (height * width)), Math.floor(k / width) % height, k % width];
  const cell = (wide) => (wide / perRow) * 0.86 / width;
  const GAP = 30; // for the name of each group
  const groupHeight = (wide) => lines * (wide / perRow) * (height / width);

  // Where element k is: in the strip if the share is 0, in its tile if it is 1; channels move one after the other.
  function box(k, wide, share) {
    const [c, y, x] = position(k);
    const own = clamp(share * 2 - c / channels, 0, 1);
    const t = own * own * (3 - 2 * own);
    const size = cell(wide);
    const strip = [(k * wide) / count, groupHeight(wide) / 2 - 14, wide / count, 28];
    const tile = [(c % perRow) * (wide / perRow) + x * size, Math.floor(c / perRow) * (wide / perRow) + y * size, size, size];
    return strip.map((from, i) => from + t * (tile[i] - from));
  }

  const groups = () => [
    { name: ["flattened map: a vector", "map of the window"], values, colour: () => "ink" },
    { name: ["weights: a row", "weights: a filter"], values: weights(), colour: (v) => (v < 0 ? "negative" : "positive") },
  ];

  const redraw = sharp(canvas, (wide) => 2 * (groupHeight(wide) + GAP), (pen, wide) => {
    const colour = colours(view);
    const share = Number(slider.value) / 100;
    pen.font = "600 14px system-ui, sans-serif";
    groups().forEach((group, g) => {
      const top = g * (groupHeight(wide) + GAP) + GAP;
      const limit = group.values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-9);
      pen.fillStyle = colour("soft");
      const size = share === 0 ? `${number(count)} numbers` : `${channels} channels of ${height}×${width}`;
      pen.fillText(`${group.name[share === 0 ? 0 : 1]}, ${size}`, 0, top - 10);
      for (let k = 0; k < count; k++) {
        const [x, y, w, h] = box(k, wide, share);
        const gap = Math.min(1, w / 8);
        pen.globalAlpha = 1;
        pen.fillStyle = colour("empty");
        pen.fillRect(x, top + y, w - gap, h - gap);
        pen.globalAlpha = Math.abs(group.values[k]) / limit;
        pen.fillStyle = colour(group.colour(group.values[k]));
        pen.fillRect(x, top + y, w - gap, h - gap);
      }
      const [x, y, w, h] = box(picked, wide, share);
      pen.globalAlpha = 1;
      pen.strokeStyle = colour("mark");
      pen.lineWidth = 2.5;
      pen.strokeRect(x - 1.5, top + y - 1.5, Math.max(w, 2) + 2, h + 2);
    });
  });

  // The same products, added in two orders: element by element of the vector, and position by position of the map.
  function both() {
    const row = weights();
    const bias = layer.bias[neuron.value];
    let flat = 0;
    for (let k = 0; k < count; k++) flat = Math.fround(flat + row[k] * values[k]);
    let folded = bias;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        for (let c = 0; c < channels; c++) {
          const k = (c * height + y) * width + x;
          folded = Math.fround(folded + row[k] * values[k]);
        }
      }
    }
    return [Math.fround(flat + bias), folded];
  }

  function show() {
    const [c, y, x] = position(picked);
    const [flat, folded] = both();
    const [w, v] = [weights()[picked], values[picked]];
    sums.row.textContent = signed(flat, 6);
    sums.filter.textContent = signed(folded, 6);
    live.textContent = `Element ${picked} = (${c}·${height} + ${y})·${width} + ${x}: channel ${c}, row ${y}, column ${x}. `
      + `Weight ${signed(w, 4)} times value ${signed(v, 4)} = ${signed(w * v, 4)}, in either shape.`;
    one("#fold-neuron-now").textContent = neuron.value;
    canvas.setAttribute("aria-valuenow", picked);
    canvas.setAttribute("aria-valuetext", `element ${picked}: channel ${c}, row ${y}, column ${x}`);
    redraw();
  }

  function pick(k) { picked = clamp(k, 0, count - 1); show(); }
  function fold(share) { slider.value = Math.round(100 * share); redraw(); }
  const stop = animation(one("#fold-play"), 4, () => Number(slider.value) / 100, fold);

  slider.addEventListener("input", () => { stop(); redraw(); });
  neuron.addEventListener("input", show);
  // in the strip an arrow moves to the next element; in the tiles Up and Down move by a row
  onArrows(canvas, (rows, columns) => pick(picked + columns + rows * (slider.value > 50 ? width : 16)));
  onDrag(canvas, (shareX, shareY) => {
    const wide = canvas.clientWidth;
    const [x, y] = [shareX * wide, shareY * canvas.clientHeight];
    const top = (y > groupHeight(wide) + GAP ? groupHeight(wide) + GAP : 0) + GAP;
    const distance = (k) => {
      const [left, up, w, h] = box(k, wide, slider.value / 100);
      return Math.max(Math.abs(left + w / 2 - x) / w, Math.abs(top + up + h / 2 - y) / h);
    };
    let nearest = 0;
    for (let k = 1; k < count; k++) if (distance(k) < distance(nearest)) nearest = k;
    pick(nearest);
  });
  canvas.setAttribute("aria-valuemax", count - 1);
  watchers.push(() => { values = crop(at.row, at.column, { macs: 0 })[flattened - 1].values; show(); });
})();
