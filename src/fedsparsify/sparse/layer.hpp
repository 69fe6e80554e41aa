// The layers of a compiled network, and the compact parameters they share.
#pragma once
#include <string>

#include "pattern.hpp"

namespace fedsparsify {

// All parameters as one compact vector: survivors only for sparse layers, every entry for dense ones. `flat` maps each
// entry to its place in the model's flat vector, -1 for padding.
struct Parameters {
    std::vector<int64_t> flat;
    std::vector<uint8_t> kept;
    Buffer value, gradient;

    // Appends entries, padded to a whole number of vectors; returns the place of the first.
    std::size_t add(const std::vector<int32_t>& index, int64_t offset, int width);
    std::size_t add_dense(int64_t count, int64_t offset, const uint8_t* mask, int width);
};

struct Batch {
    int examples, blocks, lanes;
    bool training;
    uint64_t key;  // of this step's dropout
};

// A layer works on one block of lanes at a time (forward, backward), or, where it needs the whole batch at once, in
// the *_all step before (barrier). The runner takes a run of layers without a barrier through one block after the
// other, so that a block's activations are still in cache when the next layer reads them.
class Layer {
public:
    explicit Layer(const Kernels& k) : kernels(k) {}
    virtual ~Layer() = default;
    virtual void forward_all(const Batch&) {}
    virtual void forward(const Batch&, int) {}
    virtual void backward_all(const Batch&) {}
    virtual void backward(const Batch&, int) {}
    // A flag for each run of `width` inputs that the layer reads; empty where it reads them all.
    virtual std::vector<uint8_t> used_inputs() const { return {}; }

    const Kernels& kernels;
    bool barrier = false;
    bool rectified = false;        // the output passes through ReLU, in place
    bool input_rectified = false;  // so does the input: its gradient is zero where it is not positive
    Tensor* in = nullptr;
    Tensor* out = nullptr;
    Tensor* in_delta = nullptr;  // null where no gradient to the input is needed
    Tensor* out_delta = nullptr;
    std::string backend;
};

struct ParameterPlace {
    bool present = false;
    std::size_t at = 0;
};

class LinearLayer final : public Layer {
public:
    LinearLayer(const Kernels&, Parameters&, LinearShape, const uint8_t* mask, int64_t weight, int64_t bias,
                bool sparse, const Tensor& in, bool needs_input_gradient);
    void forward_all(const Batch&) override;
    void backward_all(const Batch&) override;
    std::vector<uint8_t> used_inputs() const override;

private:
    Parameters& parameters_;
    LinearShape shape_;
    std::unique_ptr<LinearPattern> pattern_;
    ParameterPlace weight_, bias_;
    Buffer scratch_;
};

class ConvLayer final : public Layer {
public:
    ConvLayer(const Kernels&, Parameters&, const ConvShape&, const uint8_t* mask, int64_t weight, int64_t bias,
              bool sparse, const Tensor& in, const Tensor* out_delta);
    void forward(const Batch&, int block) override;
    void backward(const Batch&, int block) override;

private:
    Ahead input_ahead(int block) const;
    void backward_sparse(const Batch&, int block);
    void backward_dense(int block);
    Parameters& parameters_;
    ConvShape shape_;
    std::unique_ptr<ConvPattern> pattern_;
    std::vector<int32_t> taps_;
    struct DensePhase {
        int y, x, height, width;
        std::vector<PhaseTap> taps;
        std::vector<int32_t> offset;
        Buffer packed;
    };
    std::vector<DensePhase> dense_phases_;
    ParameterPlace weight_, bias_;
    Buffer scratch_, gradient_;  // gradient_: of the values in the order of the pattern that computes it
    std::vector<double> sums_;
};

struct NormalizeSpec {
    int64_t scale, shift;                // offsets of the parameters, -1 where absent
    int64_t running_mean, running_var;   // offsets in the buffers
    float eps, momentum;
};

class NormalizeLayer final : public Layer {
public:
    NormalizeLayer(const Kernels&, Parameters&, const NormalizeSpec&, const uint8_t* mask, float* buffers, int channels,
                   const Tensor& in);
    void forward_all(const Batch&) override;
    void forward(const Batch&, int block) override;
    void backward_all(const Batch&) override;
    void backward(const Batch&, int block) override;

private:
    NormalizeBackward backward_arguments(const Batch&) const;
    Parameters& parameters_;
    NormalizeSpec spec_;
    float* buffers_;
    ParameterPlace scale_, shift_;
    std::vector<float> mean_, inverse_, sum_delta_, sum_delta_normalized_;
};

class PoolLayer final : public Layer {
public:
    PoolLayer(const Kernels& k, int kernel_h, int kernel_w, int stride_h, int stride_w, bool maximum)
        : Layer(k), kernel_h_(kernel_h), kernel_w_(kernel_w), stride_h_(stride_h), stride_w_(stride_w),
          maximum_(maximum) {}
    void forward(const Batch&, int block) override;
    void backward(const Batch&, int block) override;

private:
    int kernel_h_, kernel_w_, stride_h_, stride_w_;
    bool maximum_;
};

// Plane to features; between two feature tensors there is nothing to do and no layer is made.
class FlattenLayer final : public Layer {
public:
    explicit FlattenLayer(const Kernels& k) : Layer(k) {}
    void forward(const Batch&, int block) override;
    void backward(const Batch&, int block) override;
};

class DropoutLayer final : public Layer {
public:
    DropoutLayer(const Kernels& k, float rate, uint64_t salt) : Layer(k), rate_(rate), salt_(salt) {}
    void forward_all(const Batch&) override;
    void forward(const Batch&, int block) override;
    void backward(const Batch&, int block) override;

private:
    float rate_;
    uint64_t salt_;
    Tensor mask_;
};

// The view of a feature tensor as the pixels of one plane of the given shape, to copy between the two.
View features_as(const Tensor& features, const Shape& shape);

}  // namespace fedsparsify
