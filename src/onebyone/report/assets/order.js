// View 2: step through a neuron's row of weights, and see where each number stands in its filter.
"use strict";

(() => {
  const view = document.getElementById("order");
  if (!view) return;
  const shown = rowOf("R2").pictures.filter;
  const slider = one("#order-step");
  const neuron = one("#order-neuron");
  const play = one("#order-play");
  const live = one("#order-live");
  const strip = { squares: all(".strip rect:not(.here)", view), here: one(".strip .here", view) };
  const filter = { squares: all(".filter rect:not(.here)", view), here: one(".filter .here", view) };
  const near = all("#order-near tbody tr").map((row) => all("td", row));
  const last = shown.index.length - 1;
  let timer = 0;

  // Like Python's "%.5g", with a minus sign in place of the hyphen.
  function weight(value) {
    const size = Math.abs(value);
    if (size === 0) return "0";
    const tiny = size < 1e-4 || size >= 1e5;
    const text = tiny ? value.toExponential(4).replace(/\.?0+e/, "e").replace(/e([+-])(\d)$/, "e$10$2")
      : String(Number(value.toPrecision(5)));
    return text.replaceAll("-", "−");
  }

  // The index of an element from its position; axes are listed from the slowest to the fastest.
  function indexOf(at) {
    const [a, b, c] = shown.order;
    return (at[a] * shown.block[b] + at[b]) * shown.block[c] + at[c];
  }

  function formula(at) {
    const [a, b, c] = shown.order.map((axis) => at[axis]);
    const [, second, third] = shown.order.map((axis) => shown.block[axis]);
    return `(${a}·${second} + ${b})·${third} + ${c}`;
  }

  function show(step) {
    step = clamp(step, 0, last);
    slider.value = step;
    const [row, kernel] = [shown.row[neuron.value], shown.filter[neuron.value]];
    const [at, index] = [shown.at[step], shown.index[step]];
    strip.here.setAttribute("x", step);
    for (const name of ["x", "y"]) filter.here.setAttribute(name, filter.squares[step].getAttribute(name));
    filter.squares.forEach((square, k) => square.classList.toggle("ahead", k > step));
    near.forEach((cells, line) => cells.forEach((cell, column) => {
      const k = step + column - 2;
      const exists = k >= 0 && k <= last;
      const values = exists ? [shown.index[k], weight(row[k]), `(${shown.at[k].join(", ")})`, weight(kernel[k])] : [];
      cell.textContent = values[line] ?? "";
    }));
    const same = row[step] === kernel[step] && indexOf(at) === index;
    slider.setAttribute("aria-valuetext", `element ${index}, channel ${at[0]}, row ${at[1]}, column ${at[2]}`);
    live.textContent = `Element ${index} of the row is channel ${at[0]}, row ${at[1]}, column ${at[2]} of the filter: `
      + `${formula(at)} = ${indexOf(at)}. `
      + (same ? `Both values are ${weight(row[step])}.` : `The values differ: ${weight(row[step])} and ${weight(kernel[step])}.`);
  }

  function colour(squares, values) {
    const limit = Math.max(...values.map(Math.abs)) || 1;
    squares.forEach((square, k) => {
      square.classList.toggle("negative", values[k] < 0);
      square.classList.toggle("positive", values[k] >= 0);
      square.setAttribute("fill-opacity", (Math.abs(values[k]) / limit).toPrecision(2));
    });
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    live.setAttribute("aria-live", "polite");
  }

  function start() {
    if (Number(slider.value) === last) show(0);
    play.textContent = "Pause";
    live.setAttribute("aria-live", "off"); // otherwise a screen reader would read out every step
    const pace = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 120;
    timer = setInterval(() => {
      show(Number(slider.value) + 1);
      if (Number(slider.value) === last) stop();
    }, pace);
  }

  neuron.addEventListener("change", () => {
    colour(strip.squares, shown.row[neuron.value]);
    colour(filter.squares, shown.filter[neuron.value]);
    show(Number(slider.value));
  });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  play.addEventListener("click", () => (timer ? stop() : start()));
  for (const [id, next] of [["first", () => 0], ["back", (at) => at - 1], ["next", (at) => at + 1]]) {
    one(`#order-${id}`).addEventListener("click", () => { stop(); show(next(Number(slider.value))); });
  }
  show(Number(slider.value));
  // a press on the row or on the filter selects that element
  one(".strip", view).addEventListener("pointerdown", (event) => {
    const box = one(".strip", view).getBoundingClientRect();
    stop();
    show(Math.floor(((event.clientX - box.left) / box.width) * (last + 1)));
  });
  one(".filter", view).addEventListener("pointerdown", (event) => {
    const step = filter.squares.indexOf(event.target);
    if (step >= 0) { stop(); show(step); }
  });
})();
