// A chain of layers compiled for one mask, and its local training and prediction.
#pragma once
#include <mutex>
#include <optional>

#include "layer.hpp"

namespace fedsparsify {

struct LayerSpec {
    std::string kind;     // linear, conv2d, batchnorm, relu, maxpool2d, avgpool2d, flatten, dropout
    std::string backend;  // sparse or dense, for linear and conv2d
    int64_t weight = -1, bias = -1, running_mean = -1, running_var = -1;
    int outputs = 0, kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0;
    float eps = 1e-5f, momentum = 0.1f, rate = 0.0f;
};

struct NetworkSpec {
    std::vector<LayerSpec> layers;
    Shape input;
    bool flat_input = false;
    bool squared_error = false;  // otherwise softmax cross-entropy
};

struct Settings {
    float lr = 0, momentum = 0, weight_decay = 0, proximal = 0;
    bool nesterov = false;
    int batch_size = 1;
    uint64_t seed = 0;
    bool training = true;
};

class Network {
public:
    Network(const NetworkSpec&, const Kernels&, const Settings&, const float* w, const uint8_t* mask, int64_t n,
            const float* buffers, int64_t buffer_count);

    // One pass over the examples rows[order[i]], or rows[i] without an order, in batches. Returns the mean loss.
    // Exactly one of labels and targets is given, indexed as the rows are.
    double epoch(const float* rows, const int64_t* order, int64_t count, const int64_t* labels, const float* targets);
    // Evaluation mode; out: [count][outputs].
    void predict(const float* rows, int64_t count, float* out);
    void weights(float* out) const;
    void buffers(float* out) const;
    int outputs() const { return outputs_; }
    int64_t parameters() const { return n_; }
    int64_t buffer_count() const { return static_cast<int64_t>(buffers_.size()); }
    int64_t input_size() const { return input_->shape.size(); }
    std::vector<std::string> backends() const;

private:
    Tensor* keep(Tensor tensor);
    void build(const NetworkSpec&, const uint8_t* mask, int64_t n);
    void load(const float* const* rows, const Batch&);
    void forward(const Batch&);
    void backward(const Batch&);
    double loss(const Batch&, const int64_t* labels, const float* const* targets);
    Batch batch_of(int examples) const;

    const Kernels& kernels_;
    Settings settings_;
    bool squared_error_;
    int blocks_, outputs_ = 0;
    int64_t n_;
    Parameters parameters_;
    Buffer velocity_, anchor_, keep_;
    bool keeps_all_ = true;
    std::vector<float> buffers_;
    std::vector<std::unique_ptr<Tensor>> tensors_;
    std::vector<std::unique_ptr<Layer>> layers_;
    Tensor* input_ = nullptr;
    View input_view_{};
    std::vector<uint8_t> used_inputs_;
    uint64_t step_ = 0;
    mutable std::mutex mutex_;
};

}  // namespace fedsparsify
