// View 2: the filter at every position of the page's map gives one neuron of every window.
"use strict";

(() => {
  const { animation, clamp, colours, columns, features, flattened, number, one, onArrows, onDrag, picture, rows, sharp, signed } = Explainer;
  const view = one("#slide");
  const canvas = one("canvas", view);
  const slider = one("#slide-position");
  const neuron = one("#fold-neuron");
  const live = one("#slide-live");
  const total = rows * columns;
  let maps = null;
  let pictures = null;

  slider.max = total - 1;
  // the mean of all channels shows more of the photograph than any single channel
  function mean(map) {
    const size = map.height * map.width;
    const sums = new Float32Array(size);
    map.values.forEach((v, i) => { sums[i % size] += v / map.channels; });
    return sums;
  }

  function paint() {
    if (!maps) return;
    const colour = colours(view);
    const rgb = (name) => colour(name).match(/\w\w/g).map((part) => parseInt(part, 16));
    const [before, after] = [maps[flattened - 1], maps[flattened]];
    const shades = mean(before);
    const most = shades.reduce((a, b) => Math.max(a, b), 1e-9);
    const size = after.height * after.width;
    const output = after.values.subarray(neuron.value * size, (Number(neuron.value) + 1) * size);
    const limit = output.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
    const [ink, plus, less] = [rgb("ink"), rgb("positive"), rgb("negative")];
    pictures = {
      before: picture(shades, before.height, before.width, (v) => [...ink, 255 * Math.sqrt(v / most)]),
      after: picture(output, after.height, after.width, (v) => [...(v < 0 ? less : plus), (255 * Math.abs(v)) / limit]),
      output,
    };
  }

  const panel = (wide) => (wide < 560 ? wide : (wide - 40) / 2);
  const heightOf = (wide) => {
    const one = (panel(wide) * rows) / columns + 50;
    return wide < 560 ? 2 * one : one;
  };
  const redraw = sharp(canvas, heightOf, (pen, wide) => {
    if (!maps) return;
    paint();
    const colour = colours(view);
    const [before, after] = [maps[flattened - 1], maps[flattened]];
    const k = Number(slider.value);
    const [row, column] = [Math.floor(k / columns), k % columns];
    const scale = panel(wide) / before.width;
    const second = wide < 560 ? [0, heightOf(wide) / 2] : [panel(wide) + 40, 0];
    pen.imageSmoothingEnabled = false;
    pen.font = "600 14px system-ui, sans-serif";
    pen.fillStyle = colour("soft");
    pen.fillText(`map of the page: ${before.channels}×${before.height}×${before.width}`, 0, 16);
    pen.fillText(`neuron ${neuron.value} of every window: ${after.height}×${after.width}`, second[0], second[1] + 16);
    const frame = (left, top, map, drawn, upTo) => {
      pen.fillStyle = colour("empty");
      pen.fillRect(left, top, map.width * scale, map.height * scale);
      if (upTo > 0) pen.drawImage(drawn, 0, 0, map.width, upTo, left, top, map.width * scale, upTo * scale);
    };
    frame(0, 28, before, pictures.before, before.height);
    frame(second[0], second[1] + 28, after, pictures.after, row);
    pen.drawImage(pictures.after, 0, row, column + 1, 1, second[0], second[1] + 28 + row * scale, (column + 1) * scale, scale);
    pen.strokeStyle = colour("mark");
    pen.lineWidth = 2.5;
    pen.strokeRect(column * scale, 28 + row * scale, features.width * scale, features.height * scale);
    pen.strokeRect(second[0] + column * scale - 2, second[1] + 28 + row * scale - 2, scale + 4, scale + 4);
  });

  function show() {
    if (!maps) return;
    const k = Number(slider.value);
    redraw();
    live.textContent = `Position ${number(k + 1)} of ${number(total)}: row ${Math.floor(k / columns)}, column ${k % columns}. `
      + `The 256 products and the bias add up to ${signed(pictures.output[k], 4)}.`;
    canvas.setAttribute("aria-valuetext", `row ${Math.floor(k / columns)}, column ${k % columns}`);
    canvas.setAttribute("aria-valuenow", k);
  }

  function move(row, column) {
    slider.value = clamp(row, 0, rows - 1) * columns + clamp(column, 0, columns - 1);
    show();
  }

  canvas.setAttribute("aria-valuemax", total - 1);
  const stop = animation(one("#slide-play"), 8, () => slider.value / (total - 1), (share) => {
    slider.value = Math.round(share * (total - 1));
    show();
  });
  slider.addEventListener("input", () => { stop(); show(); });
  neuron.addEventListener("input", show);
  const here = () => [Math.floor(slider.value / columns), slider.value % columns];
  onArrows(canvas, (down, right) => { stop(); move(here()[0] + down, here()[1] + right); });
  onDrag(canvas, (shareX, shareY) => {
    stop();
    const wide = canvas.clientWidth;
    const scale = panel(wide) / (columns + features.width - 1);
    let [x, y] = [shareX * wide, shareY * canvas.clientHeight];
    if (wide < 560) y %= heightOf(wide) / 2; else x %= panel(wide) + 40;
    move(Math.floor((y - 28) / scale), Math.floor(x / scale));
  });
  document.addEventListener("explainer:map", (event) => { maps = event.detail; show(); });
})();
