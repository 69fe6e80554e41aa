// Single sparse layers on row-major arrays, for the torch modules and for tests against the NumPy twins. Values are in
// the order of the mask's true positions, row by row.
#pragma once
#include "pattern.hpp"

namespace fedsparsify {

class LinearOperator {
public:
    LinearOperator(const uint8_t* mask, LinearShape shape, const Kernels& kernels);
    void forward(const float* values, const float* bias, const float* x, int64_t count, float* y) const;
    void input_gradient(const float* values, const float* dy, int64_t count, float* dx) const;
    void value_gradient(const float* x, const float* dy, int64_t count, float* gradient) const;

    LinearShape shape;
    int64_t entries() const { return entries_; }

private:
    int chunk() const { return 4 * kernels_.width; }
    const Kernels& kernels_;
    LinearPattern pattern_;
    std::vector<int32_t> order_;  // place in mask order of each value as the pattern has it, -1 for padding
    int64_t entries_;
};

class ConvOperator {
public:
    ConvOperator(const uint8_t* mask, const ConvShape& shape, const Shape& input, const Kernels& kernels);
    void forward(const float* values, const float* bias, const float* x, int64_t count, float* y) const;
    void input_gradient(const float* values, const float* dy, int64_t count, float* dx) const;
    void value_gradient(const float* x, const float* dy, int64_t count, float* gradient) const;

    ConvShape shape;
    Shape input, output;
    int64_t entries() const { return entries_; }

private:
    Tensor input_tensor(const Border& border) const { return Tensor::plane(input, border, 1, kernels_.width); }
    Tensor delta_tensor() const { return Tensor::plane(output, shape.delta_border(input), 1, kernels_.width); }
    const Kernels& kernels_;
    ConvPattern pattern_;
    std::vector<int32_t> order_;
    int64_t entries_;
};

}  // namespace fedsparsify
