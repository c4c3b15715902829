// View 3: choose the size of the map; counts are computed, times are measured or interpolated.
"use strict";

(() => {
  const view = document.getElementById("size");
  if (!view) return;
  const figures = rowOf("D5").figures;
  const slider = one("#size-side");
  const live = one("#size-live");
  const [C, O] = [figures.channels, figures.outputs];
  const roles = ["pointwise", "connected"];
  const charts = Object.fromEntries(all("svg[data-measure]", view).map((svg) => [svg.dataset.measure, chartOf(svg)]));

  // Exact, for one float32 image without a bias: weights, products, and bytes if each value is read or written once.
  const exact = {
    parameters: (n) => [C * O, C * n * n * O],
    macs: (n) => [C * n * n * O, C * n * n * O],
    bytes: (n) => [4 * (C * O + (C + O) * n * n), 4 * (C * n * n * O + C * n * n + O)],
  };

  const measured = (figures.times?.table ?? []).map((row) => ({
    side: Math.sqrt(row.size[0] * row.size[1]),
    size: by(row.size),
    seconds: roles.map((role) => row.seconds[role].median),
  }));

  // Measured at this size, or interpolated between two measured sizes; not extrapolated.
  function seconds(n) {
    const here = measured.find((row) => row.side === n);
    if (here) return { values: here.seconds, how: "measured" };
    const after = measured.findIndex((row) => row.side > n);
    if (after < 1) return { values: null, how: measured.length ? `not measured beyond ${measured.at(-1).size}` : "not measured" };
    const [low, high] = [measured[after - 1], measured[after]];
    const share = Math.log(n / low.side) / Math.log(high.side / low.side);
    const values = low.seconds.map((v, k) => v * (high.seconds[k] / v) ** share);
    return { values, how: `interpolated between ${low.size} and ${high.size}` };
  }

  function chartOf(svg) {
    const [left, right, most, bottom, top, low, high] = svg.dataset.scale.split(" ").map(Number);
    return {
      x: (n) => left + (Math.log(n) / Math.log(most)) * (right - left),
      y: (v) => bottom + (Math.log(v / low) / Math.log(high / low)) * (top - bottom),
      cursor: one(".cursor", svg),
      dots: roles.map((role) => one(`.here.c-${role}`, svg)),
    };
  }

  function draw(measure, n, values) {
    const chart = charts[measure];
    if (!chart) return;
    for (const end of ["x1", "x2"]) chart.cursor.setAttribute(end, chart.x(n));
    chart.dots.forEach((dot, k) => {
      dot.setAttribute("visibility", values ? "visible" : "hidden");
      dot.setAttribute("cx", chart.x(n));
      if (values) dot.setAttribute("cy", chart.y(values[k]));
    });
  }

  function fill(measure, values, how, words = number) {
    const [pointwise, connected, ratio, method] = all("td", one(`#size-table tr[data-measure="${measure}"]`));
    pointwise.textContent = values ? words(values[0]) : "–";
    connected.textContent = values ? words(values[1]) : "–";
    ratio.textContent = values ? `${number(values[1] / values[0])}×` : "–";
    method.textContent = how;
  }

  function show(n) {
    for (const [measure, count] of Object.entries(exact)) {
      draw(measure, n, count(n));
      fill(measure, count(n), "exact");
    }
    const time = seconds(n);
    draw("seconds", n, time.values);
    fill("seconds", time.values, time.how, duration);
    one("#size-now").textContent = `${n}×${n}`;
    slider.setAttribute("aria-valuetext", `${n} by ${n} positions`);
    const times = time.values
      ? `takes ${number(time.values[1] / time.values[0])} times as long (${time.how})`
      : `its time was ${time.how}`;
    live.textContent = `On a map of ${n}×${n} positions, flatten + FC has ${number(n * n)} times the parameters, `
      + `as many multiply-accumulates, and ${times}.`;
  }

  slider.addEventListener("input", () => show(Number(slider.value)));
  show(Number(slider.value));
})();
