// View 1: select a pixel of any input; every layer shows which of its outputs change.
"use strict";

(() => {
  const view = document.getElementById("pixel");
  if (!view) return;
  const influence = rowOf("D1").pictures.influence;
  const layers = all(".mover", view).map((figure) => layerOf(figure, influence[figure.dataset.role]));
  const live = one("#pixel-live");

  function layerOf(figure, measured) {
    const rows = [...new Set(measured.places.map(([y]) => y))];
    const columns = [...new Set(measured.places.map(([, x]) => x))];
    const input = one(".input", figure);
    return {
      figure, measured, rows, columns, input,
      name: figure.dataset.name,
      picked: all(".on", input),
      output: all(".output .on", figure),
      result: one(".result", figure),
      at: Number(input.getAttribute("aria-valuenow")),
    };
  }

  const total = (layer) => layer.measured.output.reduce((a, b) => a * b, 1);
  const isMap = (layer) => layer.measured.output.length === 2;

  function show(layer, at) {
    layer.at = at;
    const [y, x] = layer.measured.places[at];
    layer.picked.forEach((square, i) => square.setAttribute("fill-opacity", i === at ? 1 : 0));
    const amounts = new Map(layer.measured.moved[at].map((output, k) => [output, layer.measured.amount[at][k]]));
    layer.output.forEach((square, i) => {
      const value = amounts.get(i) ?? 0;
      square.setAttribute("fill-opacity", value > 0 ? 0.25 + 0.75 * Math.min(1, value) : 0);
    });
    const where = `row ${y}, column ${x}`;
    const what = isMap(layer) ? "output positions" : "examined outputs";
    layer.result.textContent = `The pixel in ${where} changes ${amounts.size} of ${total(layer)} ${what}.`;
    layer.input.setAttribute("aria-valuenow", at);
    layer.input.setAttribute("aria-valuetext", where);
  }

  // Selects the pixel at the corresponding position in every layer, and reports the result in one sentence.
  function moveAll(from, row, column) {
    row = clamp(row, 0, from.rows.length - 1);
    column = clamp(column, 0, from.columns.length - 1);
    for (const layer of layers) {
      const i = Math.floor(((row + 0.5) / from.rows.length) * layer.rows.length);
      const j = Math.floor(((column + 0.5) / from.columns.length) * layer.columns.length);
      show(layer, i * layer.columns.length + j);
    }
    const [y, x] = from.measured.places[from.at];
    const parts = layers.map((l) => `${l.name} ${l.measured.moved[l.at].length} of ${total(l)}`);
    live.textContent = `The pixel in row ${y}, column ${x} changes these outputs: ${parts.join("; ")}.`;
  }

  for (const layer of layers) {
    const position = () => [Math.floor(layer.at / layer.columns.length), layer.at % layer.columns.length];
    const step = (dy, dx) => () => { const [i, j] = position(); moveAll(layer, i + dy, j + dx); };
    onKeys(layer.input, {
      ArrowUp: step(-1, 0), ArrowDown: step(1, 0), ArrowLeft: step(0, -1), ArrowRight: step(0, 1),
      Home: () => moveAll(layer, 0, 0),
      End: () => moveAll(layer, layer.rows.length - 1, layer.columns.length - 1),
    });
    const point = (event) => {
      const box = one("svg", layer.input).getBoundingClientRect();
      moveAll(
        layer,
        Math.floor(((event.clientY - box.top) / box.height) * layer.rows.length),
        Math.floor(((event.clientX - box.left) / box.width) * layer.columns.length),
      );
    };
    layer.input.addEventListener("pointerdown", (event) => {
      layer.input.setPointerCapture(event.pointerId);
      layer.input.focus();
      event.preventDefault();
      point(event);
    });
    layer.input.addEventListener("pointermove", (event) => {
      if (event.buttons) point(event);
    });
  }
})();
