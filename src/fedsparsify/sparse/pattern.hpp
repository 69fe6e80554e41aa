// Masks compiled to index arrays. A pattern owns its arrays, and checks once that every index lies inside the tensor
// that it was compiled for; the kernels then trust it.
#pragma once
#include <vector>

#include "tensor.hpp"

namespace fedsparsify {

// Rows with their storage. `entry[i]` is the place in the compact values of the i-th entry.
struct RowIndex {
    std::vector<int32_t> start, stop, offset, entry;  // stop is left empty where rows follow without gaps
    std::vector<int32_t> pairs;  // convolutions only
    int rows = 0, blocks = 1;
    Rows rows_view() const {
        return {start.data(), stop.empty() ? start.data() + 1 : stop.data(), offset.data(), rows, blocks,
                pairs.data()};
    }
};

struct LinearShape {
    int outputs, inputs;
};

// Survivors of a weight [outputs][inputs] on feature tensors whose features lie `stride` floats apart.
class LinearPattern {
public:
    LinearPattern(const uint8_t* mask, LinearShape shape, int stride, int width, bool needs_input_gradient);

    LinearShape shape;
    std::vector<int32_t> index;  // place of each value in the dense weight, -1 for the padding after a row
    RowIndex forward, backward;  // forward.entry is the identity and left empty
    // A flag for each run of `width` inputs: whether any weight reads one of them.
    std::vector<uint8_t> used_inputs(int width) const;
};

struct ConvShape {
    int outputs, inputs, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int taps() const { return inputs * kernel_h * kernel_w; }
    Shape output(const Shape& input) const;
    Border input_border(const Shape& input) const;  // zeros that the forward pass reads around the input
    Border delta_border(const Shape& input) const;  // zeros that the input gradient reads around the delta
};

// One residue class of input pixels modulo the stride; with stride 1 there is one, the whole image.
struct Phase {
    int y, x, height, width;  // first pixel, and how many
    RowIndex rows;            // one row per input channel, entries over the delta
};

// Survivors of a weight [outputs][inputs][kernel_h][kernel_w] between two plane tensors.
class ConvPattern {
public:
    ConvPattern(const uint8_t* mask, const ConvShape& shape, const Tensor& in, const Tensor* delta, int width);

    ConvShape shape;
    std::vector<int32_t> index;
    RowIndex forward, gradient;
    std::vector<Phase> phases;  // empty where no input gradient is needed
    int entries() const { return static_cast<int>(index.size()); }
};

// Taps of one output pixel, in the order (input channel, y, x), as offsets into the input.
std::vector<int32_t> forward_taps(const ConvShape& shape, const Tensor& in);

// Taps of the pixels of one phase: which (output channel, ky, kx), and the offset into the delta.
struct PhaseTap {
    int32_t output, ky, kx, offset;
};
std::vector<PhaseTap> phase_taps(const ConvShape& shape, const Tensor& delta, int phase_y, int phase_x);
int phase_extent(int size, int phase, int stride);

}  // namespace fedsparsify
