// The network in plain JavaScript: products are exact, and every sum is rounded to float32.
// A map is {channels, height, width, values}, values row by row in the order channel, row, column.
"use strict";

const Network = (() => {
  const f32 = Math.fround;
  const UNIT = 2 ** -24; // the largest relative error of one rounding to float32
  const TINY = 2 ** -149; // the smallest float32, for products that underflow

  function bytes(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  }

  // The numbers of a float16 array in base64; every float16 is a float32.
  function halves(text) {
    const raw = new DataView(bytes(text).buffer);
    return Float32Array.from({ length: raw.byteLength / 2 }, (_, k) => {
      const half = raw.getUint16(2 * k, true);
      const [exponent, fraction] = [(half >> 10) & 31, half & 1023];
      const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
      return half & 0x8000 ? -size : size;
    });
  }

  function read(layer) {
    return layer.weight ? { ...layer, weight: halves(layer.weight), bias: halves(layer.bias) } : layer;
  }

  // Pixels 0 to 255 as the network's input in [-1, 1].
  function input(pixels, height, width) {
    return { channels: 1, height, width, values: Float32Array.from(pixels, (v) => v / 127.5 - 1) };
  }

  const emptyMap = (channels, height, width) =>
    ({ channels, height, width, values: new Float32Array(channels * height * width) });

  function outputSize(map, layer) {
    const [, , high, wide] = layer.shape;
    return [Math.floor((map.height - high) / layer.stride) + 1, Math.floor((map.width - wide) / layer.stride) + 1];
  }

  // Adds w times a row of the input to a row of the output; each sum is rounded to float32 when it is stored.
  function addRow(to, i, from, j, stride, count, w) {
    for (const end = i + count; i < end; i++, j += stride) to[i] += w * from[j];
  }

  // A convolution without padding. work.macs counts the multiplications as they are made.
  function convolution(map, layer, work) {
    const [outputs, channels, high, wide] = layer.shape;
    const [height, width] = outputSize(map, layer);
    const out = emptyMap(outputs, height, width);
    for (let o = 0; o < outputs; o++) {
      const start = o * height * width;
      out.values.fill(layer.bias[o], start, start + height * width);
      for (let y = 0; y < high; y++) {
        for (let x = 0; x < wide; x++) {
          for (let c = 0; c < channels; c++) {
            const w = layer.weight[((o * channels + c) * high + y) * wide + x];
            for (let row = 0; row < height; row++) {
              const from = (c * map.height + row * layer.stride + y) * map.width + x;
              addRow(out.values, start + row * width, map.values, from, layer.stride, width, w);
            }
            work.macs += height * width;
          }
        }
      }
    }
    return out;
  }

  // A fully connected layer: one row of weights for each output, all values of the vector for each sum.
  function linear(map, layer, work) {
    const [outputs, features] = layer.shape;
    const out = emptyMap(outputs, 1, 1);
    if (map.values.length !== features) throw new Error(`the layer needs ${features} values, not ${map.values.length}`);
    for (let o = 0; o < outputs; o++) {
      let sum = 0;
      for (let k = 0; k < features; k++) sum = f32(sum + layer.weight[o * features + k] * map.values[k]);
      out.values[o] = f32(sum + layer.bias[o]);
      work.macs += features;
    }
    return out;
  }

  function maxpool(map, layer) {
    const n = layer.size;
    const out = emptyMap(map.channels, Math.floor(map.height / n), Math.floor(map.width / n));
    let i = 0;
    for (let c = 0; c < map.channels; c++) {
      for (let y = 0; y < out.height; y++) {
        for (let x = 0; x < out.width; x++, i++) {
          let most = -Infinity;
          for (let v = 0; v < n; v++) {
            for (let u = 0; u < n; u++) most = Math.max(most, map.values[(c * map.height + y * n + v) * map.width + x * n + u]);
          }
          out.values[i] = most;
        }
      }
    }
    return out;
  }

  const relu = (map) => ({ ...map, values: map.values.map((v) => (v > 0 ? v : 0)) });
  const flatten = (map) => ({ channels: map.values.length, height: 1, width: 1, values: map.values });
  const kinds = { convolution, linear, maxpool, relu, flatten };

  // The outputs of all layers, one after the other.
  function* steps(layers, map, work) {
    for (const layer of layers) {
      map = kinds[layer.kind](map, layer, work);
      yield map;
    }
  }

  // The same network without its flatten: the first fully connected layer becomes a convolution over the flattened map
  // of the window, the others become 1×1 convolutions. The weights are shared, not copied.
  function asConvolutions(layers, map) {
    const kept = [];
    const work = { macs: 0 };
    let shape = null;
    for (const layer of layers) {
      if (layer.kind === "flatten") shape = [map.channels, map.height, map.width];
      else if (layer.kind === "linear") {
        const [outputs, features] = layer.shape;
        kept.push({ ...layer, kind: "convolution", stride: 1, shape: [outputs, ...(shape ?? [features, 1, 1])] });
        shape = null;
      } else kept.push(layer);
      map = kinds[layer.kind](map, layer, work);
    }
    return kept;
  }

  // How far each output may be from its exact value, for layers that have no flatten: a sum of n products and a bias, in
  // any order, is off by at most γ(n+1)·(Σ|w|·|x| + |b|), and errors of its inputs are multiplied by |w| (Higham 2002,
  // section 3.1). These sums are in float32 themselves; the factor covers their own rounding.
  function bounds(layers, map) {
    const work = { macs: 0 };
    let errors = emptyMap(map.channels, map.height, map.width);
    for (const layer of layers) {
      if (layer.kind === "convolution") errors = convolutionErrors(map, errors, layer);
      map = kinds[layer.kind](map, layer, work); // a ReLU moves its outputs at most as far as its inputs
    }
    return errors;
  }

  function convolutionErrors(map, errors, layer) {
    const terms = layer.weight.length / layer.shape[0] + 1;
    const gamma = (terms * UNIT) / (1 - terms * UNIT);
    const weight = layer.weight.map(Math.abs);
    const work = { macs: 0 };
    const passed = convolution(errors, { ...layer, weight, bias: layer.bias.map(() => 0) }, work);
    const reached = { ...map, values: map.values.map((v, i) => Math.abs(v) + errors.values[i]) };
    const sizes = convolution(reached, { ...layer, weight, bias: layer.bias.map(Math.abs) }, work);
    passed.values.forEach((e, i) => { passed.values[i] = (e + gamma * sizes.values[i] + terms * TINY) * (1 + 2 * gamma); });
    return passed;
  }

  // The part of an image that a window covers.
  function cropped(map, top, left, side) {
    const out = emptyMap(map.channels, side, side);
    for (let c = 0; c < map.channels; c++) {
      for (let y = 0; y < side; y++) {
        const start = (c * map.height + top + y) * map.width + left;
        out.values.set(map.values.subarray(start, start + side), (c * side + y) * side);
      }
    }
    return out;
  }

  // The values of all channels at one position.
  function column(map, row, at) {
    return Array.from({ length: map.channels }, (_, c) => map.values[(c * map.height + row) * map.width + at]);
  }

  function softmax(scores) {
    const most = Math.max(...scores);
    const powers = scores.map((s) => Math.exp(s - most));
    const total = powers.reduce((a, b) => a + b);
    return powers.map((p) => p / total);
  }

  return { asConvolutions, bounds, bytes, column, cropped, input, read, softmax, steps };
})();
