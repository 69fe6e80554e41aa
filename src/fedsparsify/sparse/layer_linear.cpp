#include <algorithm>

#include "layer.hpp"

namespace fedsparsify {

std::size_t Parameters::add(const std::vector<int32_t>& index, int64_t offset, int width) {
    const std::size_t at = flat.size();
    for (int32_t i : index) {
        flat.push_back(i < 0 ? -1 : offset + i);
        kept.push_back(1);
    }
    while (flat.size() % static_cast<std::size_t>(width) != 0) {
        flat.push_back(-1);
        kept.push_back(1);
    }
    return at;
}

std::size_t Parameters::add_dense(int64_t count, int64_t offset, const uint8_t* mask, int width) {
    const std::size_t at = flat.size();
    for (int64_t i = 0; i < count; ++i) {
        flat.push_back(offset + i);
        kept.push_back(mask[offset + i]);
    }
    while (flat.size() % static_cast<std::size_t>(width) != 0) {
        flat.push_back(-1);
        kept.push_back(1);
    }
    return at;
}

LinearLayer::LinearLayer(const Kernels& k, Parameters& parameters, LinearShape shape, const uint8_t* mask,
                         int64_t weight, int64_t bias, bool sparse, const Tensor& in, bool needs_input_gradient)
    : Layer(k), parameters_(parameters), shape_(shape) {
    barrier = true;
    backend = sparse ? "sparse" : "dense";
    weight_.present = true;
    if (sparse) {
        pattern_ = std::make_unique<LinearPattern>(mask + weight, shape, static_cast<int>(in.channel), k.width,
                                                   needs_input_gradient);
        weight_.at = parameters.add(pattern_->index, weight, k.width);
        if (needs_input_gradient) scratch_ = Buffer(pattern_->index.size());
    } else {
        weight_.at = parameters.add_dense(static_cast<int64_t>(shape.outputs) * shape.inputs, weight, mask, k.width);
        scratch_ = Buffer(static_cast<std::size_t>(
            std::max(static_cast<int64_t>(shape.outputs) * 16, static_cast<int64_t>(in.channel) * dense_panel)));
    }
    if (bias >= 0) bias_ = {true, parameters.add_dense(shape.outputs, bias, mask, k.width)};
}

void LinearLayer::forward_all(const Batch& batch) {
    const float* value = parameters_.value.data() + weight_.at;
    const float* bias = bias_.present ? parameters_.value.data() + bias_.at : nullptr;
    if (pattern_)
        kernels.gather_linear({pattern_->forward.rows_view(), value, in->data(), out->data(), out->channel, bias,
                               nullptr, rectified, batch.lanes});
    else
        kernels.dense_forward({value, bias, in->data(), out->data(), in->channel, rectified, shape_.inputs,
                               shape_.outputs, batch.lanes});
}

void LinearLayer::backward_all(const Batch& batch) {
    const float* value = parameters_.value.data() + weight_.at;
    float* gradient = parameters_.gradient.data() + weight_.at;
    if (bias_.present) {
        kernels.row_sums(out_delta->data(), out_delta->channel, shape_.outputs, batch.lanes,
                         parameters_.gradient.data() + bias_.at);
    }
    const float* gate = input_rectified ? in->data() : nullptr;
    if (pattern_) {
        if (in_delta) {
            float* transposed = scratch_.data();
            const auto& entry = pattern_->backward.entry;
            for (std::size_t i = 0; i < entry.size(); ++i) transposed[i] = value[entry[i]];
            kernels.gather_linear({pattern_->backward.rows_view(), transposed, out_delta->data(), in_delta->data(),
                                   in_delta->channel, nullptr, gate, false, batch.lanes});
        }
        kernels.value_gradient_linear({pattern_->forward.rows_view(), in->data(), out_delta->data(),
                                       out_delta->channel, gradient, batch.lanes});
    } else {
        if (in_delta)
            kernels.dense_backward({value, out_delta->data(), in_delta->data(), gate, in->channel, shape_.inputs,
                                    shape_.outputs, batch.lanes, scratch_.data()});
        kernels.dense_gradient({in->data(), out_delta->data(), gradient, in->channel, shape_.inputs, shape_.outputs,
                                batch.lanes, scratch_.data()});
    }
}

std::vector<uint8_t> LinearLayer::used_inputs() const {
    return pattern_ ? pattern_->used_inputs(kernels.width) : std::vector<uint8_t>{};
}

}  // namespace fedsparsify
