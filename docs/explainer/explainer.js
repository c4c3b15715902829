// What the views share: the network in both forms, the selected window, and the colours of the theme.
"use strict";

const Explainer = (() => {
  const data = window.EXPLAINER;
  const { height, width } = data.page;
  const image = Network.input(Network.bytes(data.page.pixels), height, width);
  const layers = data.layers.map(Network.read);
  const flattened = layers.findIndex((layer) => layer.kind === "flatten");
  const first = Network.cropped(image, 0, 0, data.window);
  const convolutions = Network.asConvolutions(layers, first);
  const features = [...Network.steps(layers.slice(0, flattened), first, { macs: 0 })].at(-1);
  const stride = layers.slice(0, flattened).reduce((n, layer) => n * (layer.stride ?? layer.size ?? 1), 1);
  const rows = Math.floor((height - data.window) / stride) + 1;
  const columns = Math.floor((width - data.window) / stride) + 1;
  const one = (selector, root = document) => root.querySelector(selector);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  // The selected window, as its position on the map of scores, and the crop of it: the outputs of all layers.
  const at = { row: 0, column: 0 };
  const watchers = [];
  const crop = (row, column, work) => [...Network.steps(layers, Network.cropped(image, row * stride, column * stride, data.window), work)];

  function select(row, column) {
    at.row = clamp(row, 0, rows - 1);
    at.column = clamp(column, 0, columns - 1);
    for (const watch of watchers) watch();
  }

  // One pass over the whole page, layer by layer, with a pause after each so that the page stays responsive.
  async function pass(through, start, done = () => {}) {
    const work = { macs: 0 };
    const maps = [];
    for (const map of Network.steps(through, start, work)) {
      maps.push(map);
      done(maps.length / through.length, work.macs);
      await new Promise((resume) => { setTimeout(resume); });
    }
    return { maps, macs: work.macs };
  }

  // A canvas as wide as its figure, sharp on every screen; draw(pen, width) is called again when anything changes.
  function sharp(canvas, heightOf, draw) {
    const redraw = () => {
      const wide = canvas.clientWidth;
      if (!wide) return;
      const high = Math.round(heightOf(wide));
      const ratio = window.devicePixelRatio || 1;
      canvas.style.height = `${high}px`;
      if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
        canvas.width = Math.round(wide * ratio);
        canvas.height = Math.round(high * ratio);
      }
      const pen = canvas.getContext("2d");
      pen.setTransform(canvas.width / wide, 0, 0, canvas.height / high, 0, 0);
      pen.clearRect(0, 0, wide, high);
      draw(pen, wide, high);
    };
    new ResizeObserver(redraw).observe(canvas);
    new MutationObserver(redraw).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
    return redraw;
  }

  function colours(element) {
    const style = getComputedStyle(element);
    return (name) => style.getPropertyValue(`--${name}`).trim();
  }

  // A picture of a map's values between 0 and 1, one pixel each, in one colour with this opacity.
  function picture(values, high, wide, paint) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [wide, high];
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(wide, high);
    values.forEach((v, i) => pixels.data.set(paint(v), 4 * i));
    pen.putImageData(pixels, 0, 0);
    return canvas;
  }

  // Keys of a control in two dimensions; with Shift a step is ten times as long.
  function onArrows(element, move) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    element.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      move(...step.map((n) => n * (event.shiftKey ? 10 : 1)));
    });
  }

  // Presses and drags by mouse, pen or finger, as shares of the element's width and height.
  function onDrag(element, point) {
    const send = (event) => {
      const box = element.getBoundingClientRect();
      point((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      element.focus();
      event.preventDefault();
      send(event);
    });
    element.addEventListener("pointermove", (event) => { if (element.hasPointerCapture(event.pointerId)) send(event); });
  }

  // Runs a view's animation: step(share) from 0 to 1 in so many seconds; without motion it goes to its end at once.
  function animation(button, seconds, read, step) {
    let frame = 0;
    const words = button.textContent;
    const stop = () => { cancelAnimationFrame(frame); frame = 0; button.textContent = words; };
    button.addEventListener("click", () => {
      if (frame) { stop(); return; }
      const from = read() >= 1 ? 0 : read();
      if (still.matches) { step(read() >= 1 ? 0 : 1); return; }
      let begun = null;
      button.textContent = "Pause";
      const next = (now) => {
        begun ??= now;
        const share = Math.min(1, from + (now - begun) / (1000 * seconds));
        step(share);
        if (share < 1) frame = requestAnimationFrame(next); else stop();
      };
      frame = requestAnimationFrame(next);
    });
    return stop;
  }

  const number = (n) => n.toLocaleString("en");
  const minus = (text) => text.replace("-", "−");
  const signed = (value, digits = 3) => minus(value.toFixed(digits));
  const small = (value) => {
    if (value === 0) return "0";
    const [digits, power] = value.toExponential(1).split("e");
    return `${digits} × 10${[...String(Number(power))].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`;
  };

  return {
    animation, at, clamp, colours, columns, convolutions, crop, data, features, flattened, image, layers, number, onArrows,
    onDrag, one, pass, picture, rows, select, sharp, signed, small, stride, watchers,
  };
})();
