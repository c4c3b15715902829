// The steps of a network as Python passes them to C++: one structure for each kind of step, in a tagged union.
// onebyone/native/step_records.py declares the same structures with ctypes; keep the fields in the same order.
//
// Feature maps are float32 and stored channels-last: (samples, height, width, channels). A row is the channels of one
// position. Sizes without `out_` are those of the input. Pointers marked "or null" are optional. `scratch` is memory
// that the step may use while it runs; `scratch_floats` in program.cpp gives its size.
#pragma once
#include <cstdint>

namespace onebyone {
enum Kind {
  INPUT, CONVOLUTION, WINOGRAD, DEPTHWISE, MAX_POOL, MEAN, ELEMENTWISE, LINEAR, LAYER_NORM, ATTENTION, GATHER, TRANSPOSE
};

enum Activation { NONE, RELU, RELU6, HARDSWISH, HARDSIGMOID, SILU, SIGMOID, GELU, GELU_TANH };

// what an elementwise step computes from its two operands, before the activation
enum BinaryOperation { FIRST_OPERAND, SUM, PRODUCT };

// how a window slides over a feature map
struct SlidingWindow {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Copies the network's input (samples, channels, height, width) to a channels-last map with `pad_h` rows and `pad_w`
// columns of zeros on each side.
struct InputStep {
  const float* input;
  float* output;
  int64_t samples, height, width, channels;
  int64_t pad_h, pad_w;
};

// activation(convolution(input) + bias + addend), in one group.
struct ConvolutionStep {
  const float *input, *weight;
  const float *bias, *addend;  // or null; the addend has the shape of the output
  float* output;
  int64_t samples, height, width, channels;
  int64_t out_height, out_width, out_channels;
  SlidingWindow window;
  int64_t whole_rows;   // 1: the input is already padded, and each row of the kernel reads one run of numbers
  int64_t few_outputs;  // 1: the weight is not packed in panels: the numbers of one output after those of another
  int64_t activation;
};

// A 3×3 convolution at stride 1 by Winograd's algorithm, + bias + addend; `relu` and a 2×2 `max_pool` at stride 2 may
// follow.
struct WinogradStep {
  const float *input, *weight;
  const float *bias, *addend;  // or null; the addend has the shape of the convolution's output
  float *output, *scratch;
  int64_t samples, height, width, channels;
  int64_t out_channels, pad_h, pad_w;
  int64_t relu, max_pool;  // 0 or 1
};

// activation(depthwise convolution(input) + bias).
struct DepthwiseStep {
  const float *input, *weight;
  const float* bias;  // or null
  float* output;
  int64_t samples, height, width, channels;
  int64_t out_height, out_width;
  SlidingWindow window;
  int64_t activation;
};

struct MaxPoolStep {
  const float* input;
  float* output;
  int64_t samples, height, width, channels;
  int64_t out_height, out_width;
  SlidingWindow window;
};

// The mean over all positions: (samples, height, width, channels) to (samples, channels).
struct MeanStep {
  const float* input;
  float *output, *scratch;
  int64_t samples, height, width, channels;
};

// activation(input), activation(input + second) or activation(input · second), row by row. Row p of the input is
// combined with this row of the second operand:
//   index given:              the row that begins at second + index[p]
//   positions_per_row > 0:    row p / positions_per_row (one row per sample: squeeze-and-excitation)
//   period > 0:               row p % period
//   otherwise:                row p
struct ElementwiseStep {
  const float* input;
  const float* second;  // or null where `operation` is FIRST_OPERAND
  float* output;
  const int64_t* index;  // or null
  int64_t positions, channels;
  int64_t operation;
  int64_t positions_per_row, period;
  int64_t activation;
};

// activation(input · weightᵀ + bias + addend) for `rows` rows of `inputs` numbers. Row i of the input is
//   index given:    `pieces` pieces of inputs / pieces numbers; piece j begins at input + index[i · pieces + j], and
//                   consists of zeros where that is -1 (padding)
//   factors given:  row i, each number multiplied by the factor of its channel: row (first_row + i) / rows_per_factor
//                   of the factors
//   otherwise:      row i
struct LinearStep {
  const float *input, *weight;
  const float *bias, *addend;  // or null
  float *output, *scratch;
  const int64_t* index;         // or null
  const float* factors;         // or null
  const float* channel_scales;  // or null: powers of two by which the input's channels are scaled (scaling.h)
  const uint8_t* signs;         // or null: signs of the weights; given where each row keeps an error bound of its own
  int64_t rows, inputs, outputs;
  int64_t pieces;
  int64_t first_row, rows_per_factor;
  int64_t levels;   // how often the matrices are halved by Strassen's algorithm: 0, 1 or 2
  int64_t vectors;  // the width of a panel of packed weights, in vectors: 1, 2 or 3
  int64_t activation;
};

// Each row normalised to mean 0 and variance 1, times weight, plus bias.
struct LayerNormStep {
  const float* input;
  const float *weight, *bias;  // or null
  float* output;
  const int64_t* index;  // or null: where each row begins, in floats
  int64_t rows, channels;
  double epsilon;
};

// The offset of row t of head h of sample n is begin + n · sample + h · head + t · row, in floats.
struct Strides {
  int64_t begin, sample, head, row;
};

// softmax(scale · queries · keysᵀ + bias) · values for each head of each sample; the output is
// (samples, query_rows, heads, value_depth). The bias is (query_rows, key_rows) for each sample and head.
struct AttentionStep {
  const float *queries, *keys, *values;
  const float* bias;  // or null
  float *output, *scratch;
  int64_t samples, heads, query_rows, key_rows, depth, value_depth;
  Strides query_strides, key_strides, value_strides;
  int64_t bias_sample_stride, bias_head_stride;  // 0 where samples or heads share the bias
  double scale;
};

// Copies `pieces` runs of `length` numbers; run i begins at source + index[i]. With block_stride 0 they are written one
// after another, from output + output_begin on. Otherwise each block of pieces_per_block runs begins block_stride
// floats after the one before it: several gathers then write the parts of one concatenation.
struct GatherStep {
  const float* source;
  float* output;
  const int64_t* index;
  int64_t pieces, length;
  int64_t output_begin, pieces_per_block, block_stride;
};

// Transposes `matrices` matrices of rows × columns.
struct TransposeStep {
  const float* input;
  float* output;
  int64_t matrices, rows, columns;
};

// `kind` says which member is in use
struct Step {
  int64_t kind;
  union {
    InputStep input;
    ConvolutionStep convolution;
    WinogradStep winograd;
    DepthwiseStep depthwise;
    MaxPoolStep max_pool;
    MeanStep mean;
    ElementwiseStep elementwise;
    LinearStep linear;
    LayerNormStep layer_norm;
    AttentionStep attention;
    GatherStep gather;
    TransposeStep transpose;
  };
};
}  // namespace onebyone
