// The arguments of every kernel and the table that holds one build of them per instruction set.
//
// Activations keep the batch as the contiguous dimension, cut into blocks of `width` examples ("lanes"):
//   plane tensors   [block][y][channel][x][lane]   images, with a border of zeros for the convolutions around them
//   feature tensors [feature][lane]                one row of lanes per feature, all blocks side by side
// A View describes either one by its strides, so that element-wise kernels serve both.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fedsparsify {

using std::int32_t;
using std::int64_t;
using std::ptrdiff_t;

// All strides count floats. `data` is the first lane of pixel (0, 0) of channel 0 of block 0.
struct View {
    float* data;
    ptrdiff_t block, channel, row, px;
    int blocks, channels, height, width;
};

// Rows of a sparse matrix, cut into column blocks: entries of row r in block b are start[b * rows + r] up to
// stop[b * rows + r]. Offsets count floats from the origin of the source.
struct Rows {
    const int32_t* start;
    const int32_t* stop;
    const int32_t* offset;
    int rows, blocks;
    // Convolutions only: the entries up to pairs[b * rows + r] come in twos, the second one pixel after the first, so
    // that all pixels but one are read once for both.
    const int32_t* pairs;
};

// out[r] = epilogue(bias[r] + sum over entries of value * source[offset]), `lanes` wide.
struct GatherLinear {
    Rows pattern;
    const float* value;
    const float* source;
    float* out;
    ptrdiff_t out_row;
    const float* bias;  // may be null
    const float* gate;  // same shape as out: zero the result where gate <= 0; may be null
    bool rectify;
    int lanes;
};

// gradient[i] = sum over lanes of source[offset[i]] * delta[row of i]. Rows start at multiples of the width, and offsets
// and gradient are there up to the next one: the sums of `width` entries are taken at once.
struct ValueGradientLinear {
    Rows pattern;
    const float* source;
    const float* delta;
    ptrdiff_t delta_row;
    float* gradient;
    int lanes;
};

// Dense out[r] = epilogue(bias[r] + sum_k weight[r * inputs + k] * source[k]).
struct DenseForward {
    const float* weight;
    const float* bias;
    const float* source;
    float* out;
    ptrdiff_t stride;  // lanes between features, for source and out
    bool rectify;
    int inputs, outputs, lanes;
};

// Dense out[k] = gate(sum_r weight[r * inputs + k] * delta[r]).
struct DenseBackward {
    const float* weight;
    const float* delta;
    float* out;
    const float* gate;
    ptrdiff_t stride;
    int inputs, outputs, lanes;
    float* scratch;  // outputs * 16 floats
};

// Dense gradient[r * inputs + k] = sum over lanes of delta[r] * source[k].
struct DenseGradient {
    const float* source;
    const float* delta;
    float* gradient;
    ptrdiff_t stride;
    int inputs, outputs, lanes;
    float* scratch;  // lanes * dense_panel floats
};
constexpr int dense_panel = 128;

// What the tile at (y, x) reads or writes for the first time, to be fetched while the tile before it is at work: from
// first + y * row + c * channel + x * px on, in each channel, `reach` floats more than its pixels. The runs of the
// channels lie too far apart for the processor to foresee them. Only a hint, which may point anywhere.
struct Ahead {
    const float* first;
    ptrdiff_t channel, row, px, reach;
    int channels;
};

// How many pixels of a row a sparse convolution takes at a time at most: the sums, a weight and a product must fit the
// registers, 16 of them or 32.
constexpr int most_pixels(int width) { return width == 16 ? 16 : 12; }

// Entries of a row whose gradients are summed at the same time.
constexpr int value_group = 8;

// Pixels over which products are summed before the sums across lanes: long enough to pay for those.
constexpr int box_pixels = 64;

// Convolution as rows of taps, for one block. Serves the forward pass and, with the transposed pattern, the gradient
// to the input (one call for each phase of the stride).
struct GatherConv {
    Rows pattern;
    const float* value;
    const float* source;
    ptrdiff_t source_row, source_px;
    float* out;
    ptrdiff_t out_channel, out_row, out_px;
    const float* bias;
    const float* gate;
    ptrdiff_t gate_channel, gate_row, gate_px;
    bool rectify;
    int height, width;
    Ahead ahead[3];
};

// gradient[i] += sum over pixels and lanes of source[offset[i] + pixel] * delta[row of i, pixel], for one block;
// sums[r] += sum of delta[r], where given.
struct ValueGradientConv {
    Rows pattern;
    const float* source;
    ptrdiff_t source_row, source_px;
    const float* delta;
    ptrdiff_t delta_channel, delta_row;
    float* gradient;
    double* sums;
    int height, width;
    Ahead ahead[2];
};

// Dense convolution: every row has the same taps; weights are packed [ceil(rows / panel)][taps][panel], zero padded.
struct DenseConv {
    const int32_t* offset;
    int taps, rows;
    const float* packed;
    const float* source;
    ptrdiff_t source_row, source_px;
    float* out;
    ptrdiff_t out_channel, out_row, out_px;
    const float* bias;
    const float* gate;
    ptrdiff_t gate_channel, gate_row, gate_px;
    bool rectify;
    int height, width;
};
constexpr int dense_conv_panel = 6;

// gradient[r * taps + t] += sum over pixels and lanes of source[offset[t] + pixel] * delta[r, pixel], for one block;
// sums[r] += sum of delta[r], where given.
struct DenseConvGradient {
    const int32_t* offset;
    int taps, rows;
    const float* source;
    ptrdiff_t source_row, source_px;
    const float* delta;
    ptrdiff_t delta_channel, delta_row;
    float* gradient;
    double* sums;
    int height, width;
};

struct Pool {
    View in, out;
    int kernel_h, kernel_w, stride_h, stride_w;
    bool maximum;
};

struct PoolBackward {
    View in, out;              // activations
    View in_delta, out_delta;  // in_delta is overwritten
    int kernel_h, kernel_w, stride_h, stride_w;
    bool maximum, gate;
};

struct Normalize {
    View in, out;
    const float* mean;
    const float* inverse;  // 1 / sqrt(variance + eps)
    const float* scale;    // may be null: 1
    const float* shift;    // may be null: 0
    bool rectify;
};

struct NormalizeBackward {
    View in, in_delta, out_delta;
    const float* mean;
    const float* inverse;
    const float* scale;
    const float* sum_delta;
    const float* sum_delta_normalized;
    double count;
    int examples;  // lanes past the last example get a zero gradient
    bool gate;
};

struct Update {
    float* weight;
    const float* gradient;
    float* velocity;      // null without momentum
    const float* anchor;  // null without proximal term
    const float* keep;    // 1 or 0 per entry; null where nothing kept densely is pruned
    int64_t entries;      // a multiple of width
    float lr, momentum, weight_decay, proximal;
    bool nesterov, first;
};

}  // namespace fedsparsify

#include "infer_kernels.hpp"

namespace fedsparsify {

struct Kernels {
    const char* name;
    int width;
    void (*gather_linear)(const GatherLinear&);
    void (*value_gradient_linear)(const ValueGradientLinear&);
    void (*dense_forward)(const DenseForward&);
    void (*dense_backward)(const DenseBackward&);
    void (*dense_gradient)(const DenseGradient&);
    void (*gather_conv)(const GatherConv&);
    void (*value_gradient_conv)(const ValueGradientConv&);
    void (*dense_conv)(const DenseConv&);
    void (*dense_conv_gradient)(const DenseConvGradient&);
    // One block of a view from `valid` example rows, [channel][y][x] each; missing lanes become zero.
    // `used`, where given, has a flag for each run of `width` pixels of an image row: the others are left as they are.
    void (*load_block)(const float* const* rows, int valid, const View&, int block, const uint8_t* used);
    void (*store_block)(float* const* rows, int valid, const View&, int block);
    void (*copy_block)(const View& from, const View& to, int block_from, int block_to);
    void (*rectify)(const View&, int block);
    void (*gate)(const View& delta, const View& activation, int delta_block, int block);
    void (*pool)(const Pool&, int block);
    void (*pool_backward)(const PoolBackward&, int block, int in_delta_block, int out_delta_block);
    // sums[r] = sum over lanes of data[r * stride], for feature tensors
    void (*row_sums)(const float* data, ptrdiff_t stride, int rows, int lanes, float* sums);
    void (*channel_squares)(const View&, int block, int valid, const float* mean, double* sums);
    // sums[c] += over pixels and valid lanes of block
    void (*channel_sums_valid)(const View&, int block, int valid, double* sums);
    void (*normalize)(const Normalize&, int block);
    void (*normalize_sums)(const NormalizeBackward&, int block, double* sum_delta, double* sum_delta_normalized);
    void (*normalize_backward)(const NormalizeBackward&, int block, int delta_block);
    void (*dropout_mask)(float* mask, int64_t count, uint64_t key, float rate);
    void (*multiply)(const View& a, const View& mask, const View& out, int block_a, int block_mask, int block_out);
    // logits [classes][stride]; writes delta = (softmax - onehot) * scale for `valid` lanes, zero beyond; returns the
    // summed loss of this block of lanes.
    double (*cross_entropy)(const float* logits, float* delta, ptrdiff_t stride, int classes, const int64_t* labels,
                            int valid, int lanes, float scale);
    void (*update)(const Update&);
    // `rounds` times 96 independent-enough vector multiply-adds, to measure the peak rate.
    float (*multiply_adds)(int64_t rounds);
    float (*read_all)(const float* data, int64_t count);
    // Inference alone; see infer_kernels.hpp.
    void (*tile_conv)(const TileConv&);
    void (*lane_linear)(const LaneLinear&);
    void (*vector_linear)(const VectorLinear&);
    void (*combine)(const Combine&);
    void (*max_pool_pairs)(const View& in, const View& out);
    void (*pixel_means)(const View& in, float* out);
    void (*exchange_halo)(const Halo&);
};

// The best build for this processor, or the named one; null where the processor or the binary lacks it.
const Kernels* find_kernels(const char* name);

}  // namespace fedsparsify
