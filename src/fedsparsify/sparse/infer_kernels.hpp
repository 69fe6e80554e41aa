// Arguments of the kernels that only inference needs. Layouts are those of kernels.hpp; a plane tensor holds one block.
//
// The lanes of a plane are either images, or equal parts of one image cut as a grid: a tile with a border that repeats
// its neighbours' pixels. A convolution does not see the difference.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fedsparsify {

// A surviving weight, and where it reads: floats from the tile's first pixel, or the number of a feature.
struct Tap {
    float weight;
    std::int32_t offset;
};

// Taps [begin, end) of one output row.
struct TapRow {
    std::int32_t row, begin, end;
};

struct Taps {
    const Tap* taps;
    const TapRow* rows;
    int count;  // of rows
};

// Two taps, so that both weights and both offsets are one load each: loads are what a sparse convolution is bound by.
struct alignas(16) TwoTaps {
    float weight[2];
    std::int32_t offset[2];
};

// Twos of one output row within one block of inputs. In those before `pairs` the second tap reads one pixel after the
// first, so that what both read is loaded once. An odd tap at the end has a second one of weight 0.
struct TapRun {
    std::int32_t row, begin, pairs, end;
    bool first, last;  // starts from the bias; applies what follows the sum
};

constexpr int tile_rows = 4;     // a tile has at most these rows
constexpr int tile_pixels = 12;  // and these pixels: their sums, two weights and a product fill sixteen registers

// out[row, y, x] = epilogue(bias + sum of taps), for rows [0, height) and pixels [0, width); with `pool` the largest of
// each 2 x 2 of them, where height, width, rows and pixels are even.
struct TileConv {
    const TwoTaps* taps;
    const TapRun* runs;
    int count;  // of runs
    const float* source;
    std::ptrdiff_t source_row, source_px;  // between what neighbouring output pixels read
    float* out;
    std::ptrdiff_t out_channel, out_row;  // pixels are `width` lanes apart
    const float* bias;  // one a row, or null
    const float* map;   // instead: one a row and pixel (map_px 1), or one a lane besides (map_px the number of lanes)
    std::ptrdiff_t map_channel, map_row, map_px;
    bool rectify, pool;
    int height, width;
    int rows, pixels;  // of a tile
    float* sums;       // room for what a tile has of all rows, between one block of inputs and the next
};

// [feature][vectors * lanes] -> [row][vectors * lanes].
struct LaneLinear {
    Taps taps;
    const float* source;
    float* out;
    const float* bias;
    bool rectify;
    int vectors;  // 1, 2 or 4
};

// One example: [feature] -> [row]. Dense weights, where given, take the place of the taps.
struct VectorLinear {
    Taps taps;
    const float* dense;
    const float* source;
    float* out;
    const float* bias;
    bool rectify;
    int inputs, outputs;
};

// out = epilogue(scale[c] * a + shift[c] + b); scale, shift and b may be null. Same shapes.
struct Combine {
    View a, b, out;
    const float* scale;
    const float* shift;
    bool rectify;
};

// Copies each part's edge into the border of its neighbours, and zeros into the border at the image's own edge.
struct Halo {
    float* data;  // pixel (0, 0)
    std::ptrdiff_t channel, row;
    int channels, height, width;  // of a part
    int top, left, bottom, right;
    int grid_y, grid_x;
};

}  // namespace fedsparsify
