#include "operators.hpp"

#include <algorithm>

#include "layer.hpp"

namespace fedsparsify {
namespace {

// Rank of each value's place in the dense weight; -1 for padding.
std::vector<int32_t> mask_order(const std::vector<int32_t>& index) {
    std::vector<int32_t> by_place;
    for (std::size_t i = 0; i < index.size(); ++i)
        if (index[i] >= 0) by_place.push_back(static_cast<int32_t>(i));
    std::sort(by_place.begin(), by_place.end(), [&](int32_t a, int32_t b) {
        return index[static_cast<std::size_t>(a)] < index[static_cast<std::size_t>(b)];
    });
    std::vector<int32_t> order(index.size(), -1);
    for (std::size_t rank = 0; rank < by_place.size(); ++rank)
        order[static_cast<std::size_t>(by_place[rank])] = static_cast<int32_t>(rank);
    return order;
}

std::vector<float> permuted(const float* values, const std::vector<int32_t>& order) {
    std::vector<float> out(order.size());
    for (std::size_t i = 0; i < order.size(); ++i) out[i] = order[i] < 0 ? 0.0f : values[order[i]];
    return out;
}

int64_t survivors(const std::vector<int32_t>& order) {
    return std::count_if(order.begin(), order.end(), [](int32_t i) { return i >= 0; });
}

std::vector<float> gathered(const std::vector<float>& values, const std::vector<int32_t>& entry) {
    std::vector<float> out(entry.size());
    for (std::size_t i = 0; i < entry.size(); ++i) out[i] = values[static_cast<std::size_t>(entry[i])];
    return out;
}

// Example rows of one chunk, block by block, into or out of a tensor.
template <class Row, class F>
void each_block(Row* base, int64_t row_size, int64_t count, int width, F f) {
    std::vector<Row*> rows(static_cast<std::size_t>(width));
    for (int64_t begin = 0, block = 0; begin < count; begin += width, ++block) {
        const int valid = static_cast<int>(std::min<int64_t>(width, count - begin));
        for (int i = 0; i < valid; ++i) rows[static_cast<std::size_t>(i)] = base + (begin + i) * row_size;
        f(rows.data(), valid, static_cast<int>(block));
    }
}

}  // namespace

LinearOperator::LinearOperator(const uint8_t* mask, LinearShape s, const Kernels& kernels)
    : shape(s), kernels_(kernels), pattern_(mask, s, chunk(), kernels.width, true), order_(mask_order(pattern_.index)),
      entries_(survivors(order_)) {}

void LinearOperator::forward(const float* values, const float* bias, const float* x, int64_t count, float* y) const {
    const std::vector<float> value = permuted(values, order_);
    const Tensor in = Tensor::features(shape.inputs, 4, kernels_.width);
    const Tensor out = Tensor::features(shape.outputs, 4, kernels_.width);
    const View in_view = features_as(in, {1, 1, shape.inputs}), out_view = features_as(out, {1, 1, shape.outputs});
    for (int64_t begin = 0; begin < count; begin += chunk()) {
        const int64_t size = std::min<int64_t>(chunk(), count - begin);
        each_block(x + begin * shape.inputs, shape.inputs, size, kernels_.width,
                   [&](const float* const* rows, int valid, int b) { kernels_.load_block(rows, valid, in_view, b, nullptr); });
        kernels_.gather_linear({pattern_.forward.rows_view(), value.data(), in.data(), out.data(), out.channel, bias,
                                nullptr, false, round_up(static_cast<int>(size), kernels_.width)});
        each_block(y + begin * shape.outputs, shape.outputs, size, kernels_.width,
                   [&](float* const* rows, int valid, int b) { kernels_.store_block(rows, valid, out_view, b); });
    }
}

void LinearOperator::input_gradient(const float* values, const float* dy, int64_t count, float* dx) const {
    const std::vector<float> value = gathered(permuted(values, order_), pattern_.backward.entry);
    const Tensor delta = Tensor::features(shape.outputs, 4, kernels_.width);
    const Tensor out = Tensor::features(shape.inputs, 4, kernels_.width);
    const View in_view = features_as(delta, {1, 1, shape.outputs}), out_view = features_as(out, {1, 1, shape.inputs});
    for (int64_t begin = 0; begin < count; begin += chunk()) {
        const int64_t size = std::min<int64_t>(chunk(), count - begin);
        each_block(dy + begin * shape.outputs, shape.outputs, size, kernels_.width,
                   [&](const float* const* rows, int valid, int b) { kernels_.load_block(rows, valid, in_view, b, nullptr); });
        kernels_.gather_linear({pattern_.backward.rows_view(), value.data(), delta.data(), out.data(), out.channel,
                                nullptr, nullptr, false, round_up(static_cast<int>(size), kernels_.width)});
        each_block(dx + begin * shape.inputs, shape.inputs, size, kernels_.width,
                   [&](float* const* rows, int valid, int b) { kernels_.store_block(rows, valid, out_view, b); });
    }
}

void LinearOperator::value_gradient(const float* x, const float* dy, int64_t count, float* gradient) const {
    std::vector<float> part(pattern_.forward.offset.size()), total(pattern_.forward.offset.size());
    const Tensor in = Tensor::features(shape.inputs, 4, kernels_.width);
    const Tensor delta = Tensor::features(shape.outputs, 4, kernels_.width);
    const View in_view = features_as(in, {1, 1, shape.inputs});
    const View delta_view = features_as(delta, {1, 1, shape.outputs});
    for (int64_t begin = 0; begin < count; begin += chunk()) {
        const int64_t size = std::min<int64_t>(chunk(), count - begin);
        each_block(x + begin * shape.inputs, shape.inputs, size, kernels_.width,
                   [&](const float* const* rows, int valid, int b) { kernels_.load_block(rows, valid, in_view, b, nullptr); });
        each_block(dy + begin * shape.outputs, shape.outputs, size, kernels_.width,
                   [&](const float* const* rows, int valid, int b) { kernels_.load_block(rows, valid, delta_view, b, nullptr); });
        kernels_.value_gradient_linear({pattern_.forward.rows_view(), in.data(), delta.data(), delta.channel,
                                        part.data(), round_up(static_cast<int>(size), kernels_.width)});
        for (std::size_t i = 0; i < total.size(); ++i) total[i] += part[i];
    }
    for (std::size_t i = 0; i < order_.size(); ++i)
        if (order_[i] >= 0) gradient[order_[i]] = total[i];
}

ConvOperator::ConvOperator(const uint8_t* mask, const ConvShape& s, const Shape& in, const Kernels& kernels)
    : shape(s), input(in), output(s.output(in)), kernels_(kernels),
      pattern_([&] {
          const Tensor x = input_tensor(s.input_border(in)), delta = delta_tensor();
          return ConvPattern(mask, s, x, &delta, kernels.width);
      }()),
      order_(mask_order(pattern_.index)), entries_(survivors(order_)) {}

void ConvOperator::forward(const float* values, const float* bias, const float* x, int64_t count, float* y) const {
    const std::vector<float> value = permuted(values, order_);
    const Tensor in = input_tensor(shape.input_border(input)), out = Tensor::plane(output, {}, 1, kernels_.width);
    for (int64_t begin = 0; begin < count; begin += kernels_.width) {
        const int64_t size = std::min<int64_t>(kernels_.width, count - begin);
        each_block(x + begin * input.size(), input.size(), size, kernels_.width,
                   [&](const float* const* rows, int valid, int b) { kernels_.load_block(rows, valid, in.view(), b, nullptr); });
        kernels_.gather_conv({pattern_.forward.rows_view(), value.data(), in.data(), shape.stride_h * in.row,
                              shape.stride_w * in.px, out.data(), out.channel, out.row, out.px, bias, nullptr, 0, 0, 0,
                              false, output.height, output.width, {}});
        each_block(y + begin * output.size(), output.size(), size, kernels_.width,
                   [&](float* const* rows, int valid, int b) { kernels_.store_block(rows, valid, out.view(), b); });
    }
}

void ConvOperator::input_gradient(const float* values, const float* dy, int64_t count, float* dx) const {
    const std::vector<float> value = permuted(values, order_);
    std::vector<std::vector<float>> transposed;
    for (const Phase& p : pattern_.phases) transposed.push_back(gathered(value, p.rows.entry));
    const Tensor delta = delta_tensor(), out = input_tensor({});
    for (int64_t begin = 0; begin < count; begin += kernels_.width) {
        const int64_t size = std::min<int64_t>(kernels_.width, count - begin);
        each_block(dy + begin * output.size(), output.size(), size, kernels_.width,
                   [&](const float* const* rows, int valid, int b) { kernels_.load_block(rows, valid, delta.view(), b, nullptr); });
        for (std::size_t i = 0; i < pattern_.phases.size(); ++i) {
            const Phase& p = pattern_.phases[i];
            kernels_.gather_conv({p.rows.rows_view(), transposed[i].data(), delta.data(), delta.row, delta.px,
                                  out.data() + p.y * out.row + p.x * out.px, out.channel, shape.stride_h * out.row,
                                  shape.stride_w * out.px, nullptr, nullptr, 0, 0, 0, false, p.height, p.width, {}});
        }
        each_block(dx + begin * input.size(), input.size(), size, kernels_.width,
                   [&](float* const* rows, int valid, int b) { kernels_.store_block(rows, valid, out.view(), b); });
    }
}

void ConvOperator::value_gradient(const float* x, const float* dy, int64_t count, float* gradient) const {
    std::vector<float> total(order_.size());
    const Tensor in = input_tensor(shape.input_border(input)), delta = delta_tensor();
    for (int64_t begin = 0; begin < count; begin += kernels_.width) {
        const int64_t size = std::min<int64_t>(kernels_.width, count - begin);
        each_block(x + begin * input.size(), input.size(), size, kernels_.width,
                   [&](const float* const* rows, int valid, int b) { kernels_.load_block(rows, valid, in.view(), b, nullptr); });
        each_block(dy + begin * output.size(), output.size(), size, kernels_.width,
                   [&](const float* const* rows, int valid, int b) { kernels_.load_block(rows, valid, delta.view(), b, nullptr); });
        kernels_.value_gradient_conv({pattern_.gradient.rows_view(), in.data(), shape.stride_h * in.row,
                                      shape.stride_w * in.px, delta.data(), delta.channel, delta.row, total.data(),
                                      nullptr, output.height, output.width, {}});
    }
    for (std::size_t i = 0; i < total.size(); ++i)
        gradient[order_[static_cast<std::size_t>(pattern_.gradient.entry[i])]] = total[i];
}

}  // namespace fedsparsify
