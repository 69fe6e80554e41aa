#include <algorithm>
#include <cmath>

#include "layer.hpp"

namespace fedsparsify {

View features_as(const Tensor& f, const Shape& shape) {
    return {f.data(), f.block, f.channel * shape.height * shape.width, f.channel * shape.width, f.channel, f.blocks,
            shape.channels, shape.height, shape.width};
}

NormalizeLayer::NormalizeLayer(const Kernels& k, Parameters& parameters, const NormalizeSpec& spec, const uint8_t* mask,
                               float* buffers, int channels, const Tensor&)
    : Layer(k), parameters_(parameters), spec_(spec), buffers_(buffers) {
    barrier = true;
    const auto n = static_cast<std::size_t>(channels);
    mean_.resize(n);
    inverse_.resize(n);
    sum_delta_.resize(n);
    sum_delta_normalized_.resize(n);
    if (spec.scale >= 0) scale_ = {true, parameters.add_dense(channels, spec.scale, mask, k.width)};
    if (spec.shift >= 0) shift_ = {true, parameters.add_dense(channels, spec.shift, mask, k.width)};
}

void NormalizeLayer::forward_all(const Batch& batch) {
    const std::size_t n = mean_.size();
    float* running_mean = buffers_ + spec_.running_mean;
    float* running_var = buffers_ + spec_.running_var;
    if (!batch.training) {
        for (std::size_t c = 0; c < n; ++c) {
            mean_[c] = running_mean[c];
            inverse_[c] = 1.0f / std::sqrt(running_var[c] + spec_.eps);
        }
        return;
    }
    const View view = in->view();
    const double count = static_cast<double>(batch.examples) * in->shape.height * in->shape.width;
    if (count < 2) throw std::invalid_argument("batch norm needs more than one value per channel in a training step");
    const auto valid = [&](int b) { return std::min(kernels.width, batch.examples - b * kernels.width); };
    std::vector<double> sums(n, 0.0);
    for (int b = 0; b < batch.blocks; ++b) kernels.channel_sums_valid(view, b, valid(b), sums.data());
    for (std::size_t c = 0; c < n; ++c) mean_[c] = static_cast<float>(sums[c] / count);
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int b = 0; b < batch.blocks; ++b) kernels.channel_squares(view, b, valid(b), mean_.data(), sums.data());
    for (std::size_t c = 0; c < n; ++c) {
        inverse_[c] = static_cast<float>(1.0 / std::sqrt(sums[c] / count + static_cast<double>(spec_.eps)));
        running_mean[c] += spec_.momentum * (mean_[c] - running_mean[c]);
        running_var[c] += spec_.momentum * (static_cast<float>(sums[c] / (count - 1)) - running_var[c]);
    }
}

void NormalizeLayer::forward(const Batch&, int block) {
    const float* base = parameters_.value.data();
    kernels.normalize({in->view(), out->view(), mean_.data(), inverse_.data(),
                       scale_.present ? base + scale_.at : nullptr, shift_.present ? base + shift_.at : nullptr,
                       rectified},
                      block);
}

NormalizeBackward NormalizeLayer::backward_arguments(const Batch& batch) const {
    return {in->view(),
            in_delta ? in_delta->view() : View{},
            out_delta->view(),
            mean_.data(),
            inverse_.data(),
            scale_.present ? parameters_.value.data() + scale_.at : nullptr,
            sum_delta_.data(),
            sum_delta_normalized_.data(),
            static_cast<double>(batch.examples) * in->shape.height * in->shape.width,
            batch.examples,
            input_rectified};
}

void NormalizeLayer::backward_all(const Batch& batch) {
    const std::size_t n = mean_.size();
    std::vector<double> sums(n, 0.0), normalized(n, 0.0);
    const NormalizeBackward a = backward_arguments(batch);
    for (int b = 0; b < batch.blocks; ++b) kernels.normalize_sums(a, b, sums.data(), normalized.data());
    for (std::size_t c = 0; c < n; ++c) {
        sum_delta_[c] = static_cast<float>(sums[c]);
        sum_delta_normalized_[c] = static_cast<float>(normalized[c]);
    }
    float* gradient = parameters_.gradient.data();
    if (scale_.present) std::copy(sum_delta_normalized_.begin(), sum_delta_normalized_.end(), gradient + scale_.at);
    if (shift_.present) std::copy(sum_delta_.begin(), sum_delta_.end(), gradient + shift_.at);
}

void NormalizeLayer::backward(const Batch& batch, int block) {
    if (in_delta) kernels.normalize_backward(backward_arguments(batch), block, in_delta->block_of(block));
}

void PoolLayer::forward(const Batch&, int block) {
    kernels.pool({in->view(), out->view(), kernel_h_, kernel_w_, stride_h_, stride_w_, maximum_}, block);
    if (rectified) kernels.rectify(out->view(), block);
}

void PoolLayer::backward(const Batch&, int block) {
    if (in_delta)
        kernels.pool_backward({in->view(), out->view(), in_delta->view(), out_delta->view(), kernel_h_, kernel_w_,
                               stride_h_, stride_w_, maximum_, input_rectified},
                              block, in_delta->block_of(block), out_delta->block_of(block));
}

void FlattenLayer::forward(const Batch&, int block) {
    kernels.copy_block(in->view(), features_as(*out, in->shape), block, block);
    if (rectified) kernels.rectify(out->view(), block);
}

void FlattenLayer::backward(const Batch&, int block) {
    if (!in_delta) return;
    kernels.copy_block(features_as(*out_delta, in->shape), in_delta->view(), block, in_delta->block_of(block));
    if (input_rectified) kernels.gate(in_delta->view(), in->view(), in_delta->block_of(block), block);
}

void DropoutLayer::forward_all(const Batch& batch) {
    if (mask_.blocks == 0)
        mask_ = out->flat ? Tensor::features(out->shape.channels, out->blocks, kernels.width)
                          : Tensor::plane(out->shape, {}, out->blocks, kernels.width);
    kernels.dropout_mask(mask_.storage.data(), static_cast<int64_t>(mask_.storage.size()), batch.key ^ salt_, rate_);
}

void DropoutLayer::forward(const Batch&, int block) {
    kernels.multiply(in->view(), mask_.view(), out->view(), block, block, block);
    if (rectified) kernels.rectify(out->view(), block);
}

void DropoutLayer::backward(const Batch&, int block) {
    if (!in_delta) return;
    kernels.multiply(out_delta->view(), mask_.view(), in_delta->view(), out_delta->block_of(block), block,
                     in_delta->block_of(block));
    if (input_rectified) kernels.gate(in_delta->view(), in->view(), in_delta->block_of(block), block);
}

}  // namespace fedsparsify
