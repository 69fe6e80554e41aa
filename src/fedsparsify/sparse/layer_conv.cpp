#include <algorithm>

#include "layer.hpp"

namespace fedsparsify {
namespace {

int64_t panels(int rows) { return (rows + dense_conv_panel - 1) / dense_conv_panel; }

}  // namespace

ConvLayer::ConvLayer(const Kernels& k, Parameters& parameters, const ConvShape& shape, const uint8_t* mask,
                     int64_t weight, int64_t bias, bool sparse, const Tensor& in, const Tensor* delta)
    : Layer(k), parameters_(parameters), shape_(shape), sums_(static_cast<std::size_t>(shape.outputs)) {
    backend = sparse ? "sparse" : "dense";
    weight_.present = true;
    if (sparse) {
        pattern_ = std::make_unique<ConvPattern>(mask + weight, shape, in, delta, k.width);
        weight_.at = parameters.add(pattern_->index, weight, k.width);
        gradient_ = Buffer(pattern_->index.size());
        if (delta) scratch_ = Buffer(pattern_->index.size() * pattern_->phases.size());
    } else {
        taps_ = forward_taps(shape, in);
        weight_.at = parameters.add_dense(static_cast<int64_t>(shape.outputs) * shape.taps(), weight, mask, k.width);
        scratch_ = Buffer(static_cast<std::size_t>(panels(shape.outputs) * dense_conv_panel * shape.taps()));
        if (delta)
            for (int py = 0; py < shape.stride_h; ++py)
                for (int px = 0; px < shape.stride_w; ++px) {
                    DensePhase phase{py, px, phase_extent(in.shape.height, py, shape.stride_h),
                                     phase_extent(in.shape.width, px, shape.stride_w),
                                     phase_taps(shape, *delta, py, px), {}, {}};
                    if (phase.height == 0 || phase.width == 0) continue;
                    for (const PhaseTap& t : phase.taps) phase.offset.push_back(t.offset);
                    phase.packed = Buffer(static_cast<std::size_t>(panels(shape.inputs)) * dense_conv_panel *
                                          phase.taps.size());
                    dense_phases_.push_back(std::move(phase));
                }
    }
    if (bias >= 0) bias_ = {true, parameters.add_dense(shape.outputs, bias, mask, k.width)};
}

// The lowest row that an output pixel reads: those above it were read for the pixels above.
Ahead ConvLayer::input_ahead(int block) const {
    return in->ahead(block, shape_.kernel_h - 1 - shape_.pad_h, -shape_.pad_w, shape_.kernel_w - 1, shape_.stride_h,
                     shape_.stride_w);
}

void ConvLayer::forward(const Batch&, int block) {
    const float* value = parameters_.value.data() + weight_.at;
    const float* bias = bias_.present ? parameters_.value.data() + bias_.at : nullptr;
    const ptrdiff_t row = shape_.stride_h * in->row, px = shape_.stride_w * in->px;
    const Shape& o = out->shape;
    if (pattern_) {
        kernels.gather_conv({pattern_->forward.rows_view(), value, in->at(block), row, px, out->at(block), out->channel,
                             out->row, out->px, bias, nullptr, 0, 0, 0, rectified, o.height, o.width,
                             {input_ahead(block), out->ahead(block, 0, 0, 0), {}}});
        return;
    }
    if (block == 0) {
        constexpr int M = dense_conv_panel;
        const int taps = shape_.taps();
        for (int r = 0; r < shape_.outputs; ++r)
            for (int t = 0; t < taps; ++t)
                scratch_.data()[(static_cast<int64_t>(r / M) * taps + t) * M + r % M] =
                    value[static_cast<int64_t>(r) * taps + t];
    }
    kernels.dense_conv({taps_.data(), shape_.taps(), shape_.outputs, scratch_.data(), in->at(block), row, px,
                        out->at(block), out->channel, out->row, out->px, bias, nullptr, 0, 0, 0, rectified, o.height,
                        o.width});
}

void ConvLayer::backward(const Batch& batch, int block) {
    if (block == 0) std::fill(sums_.begin(), sums_.end(), 0.0);
    if (pattern_)
        backward_sparse(batch, block);
    else
        backward_dense(block);
    if (bias_.present && block + 1 == batch.blocks) {
        float* to = parameters_.gradient.data() + bias_.at;
        for (int r = 0; r < shape_.outputs; ++r) to[r] = static_cast<float>(sums_[static_cast<std::size_t>(r)]);
    }
}

void ConvLayer::backward_sparse(const Batch& batch, int block) {
    const float* value = parameters_.value.data() + weight_.at;
    if (in_delta) {
        float* transposed = scratch_.data();
        for (const Phase& p : pattern_->phases) {
            if (block == 0)
                for (std::size_t i = 0; i < p.rows.entry.size(); ++i) transposed[i] = value[p.rows.entry[i]];
            const ptrdiff_t to = p.y * in_delta->row + p.x * in_delta->px;
            const ptrdiff_t gate = p.y * in->row + p.x * in->px;
            kernels.gather_conv({p.rows.rows_view(), transposed, out_delta->at(block), out_delta->row, out_delta->px,
                                 in_delta->at(block) + to, in_delta->channel, shape_.stride_h * in_delta->row,
                                 shape_.stride_w * in_delta->px, nullptr,
                                 input_rectified ? in->at(block) + gate : nullptr, in->channel,
                                 shape_.stride_h * in->row, shape_.stride_w * in->px, false, p.height, p.width,
                                 {out_delta->ahead(block, (p.y + shape_.pad_h) / shape_.stride_h,
                                                   (p.x + shape_.pad_w - shape_.kernel_w + 1) / shape_.stride_w,
                                                   (shape_.kernel_w - 1) / shape_.stride_w),
                                  in_delta->ahead(block, p.y, p.x, 0, shape_.stride_h, shape_.stride_w),
                                  input_rectified
                                      ? in->ahead(block, p.y, p.x, 0, shape_.stride_h, shape_.stride_w)
                                      : Ahead{}}});
            transposed += p.rows.entry.size();
        }
    }
    const std::vector<int32_t>& entry = pattern_->gradient.entry;
    if (block == 0) std::fill_n(gradient_.data(), gradient_.size(), 0.0f);
    kernels.value_gradient_conv({pattern_->gradient.rows_view(), in->at(block), shape_.stride_h * in->row,
                                 shape_.stride_w * in->px, out_delta->at(block), out_delta->channel, out_delta->row,
                                 gradient_.data(), bias_.present ? sums_.data() : nullptr, out->shape.height,
                                 out->shape.width, {input_ahead(block), out_delta->ahead(block, 0, 0, 0)}});
    if (block + 1 == batch.blocks) {
        float* gradient = parameters_.gradient.data() + weight_.at;
        for (std::size_t i = 0; i < entry.size(); ++i) gradient[entry[i]] = gradient_.data()[i];
    }
}

void ConvLayer::backward_dense(int block) {
    const float* value = parameters_.value.data() + weight_.at;
    float* gradient = parameters_.gradient.data() + weight_.at;
    if (block == 0) std::fill_n(gradient, shape_.outputs * shape_.taps(), 0.0f);
    if (in_delta)
        for (DensePhase& p : dense_phases_) {
            const auto taps = static_cast<int64_t>(p.taps.size());
            if (block == 0) {
                constexpr int M = dense_conv_panel;
                for (int c = 0; c < shape_.inputs; ++c)
                    for (int64_t i = 0; i < taps; ++i) {
                        const PhaseTap& t = p.taps[static_cast<std::size_t>(i)];
                        const int64_t from =
                            ((static_cast<int64_t>(t.output) * shape_.inputs + c) * shape_.kernel_h + t.ky) *
                                shape_.kernel_w + t.kx;
                        p.packed.data()[(c / M * taps + i) * M + c % M] = value[from];
                    }
            }
            const ptrdiff_t to = p.y * in_delta->row + p.x * in_delta->px;
            const ptrdiff_t gate = p.y * in->row + p.x * in->px;
            kernels.dense_conv({p.offset.data(), static_cast<int>(taps), shape_.inputs, p.packed.data(),
                                out_delta->at(block), out_delta->row, out_delta->px, in_delta->at(block) + to,
                                in_delta->channel, shape_.stride_h * in_delta->row, shape_.stride_w * in_delta->px,
                                nullptr, input_rectified ? in->at(block) + gate : nullptr, in->channel,
                                shape_.stride_h * in->row, shape_.stride_w * in->px, false, p.height, p.width});
        }
    kernels.dense_conv_gradient({taps_.data(), shape_.taps(), shape_.outputs, in->at(block), shape_.stride_h * in->row,
                                 shape_.stride_w * in->px, out_delta->at(block), out_delta->channel, out_delta->row,
                                 gradient, bias_.present ? sums_.data() : nullptr, out->shape.height,
                                 out->shape.width});
}

}  // namespace fedsparsify
