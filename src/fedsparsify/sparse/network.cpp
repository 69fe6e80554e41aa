#include "network.hpp"

#include <algorithm>
#include <cmath>

namespace fedsparsify {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

void check_span(int64_t offset, int64_t size, int64_t total, const char* what) {
    if (offset < 0 || size < 0 || offset > total || size > total - offset)
        refuse(std::string("plan: ") + what + " at offset " + std::to_string(offset) + " with " +
               std::to_string(size) + " elements does not fit into " + std::to_string(total));
}

uint64_t scramble(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// What a layer of the plan does to shapes, before any memory is taken.
struct Stage {
    const LayerSpec* spec;
    Shape in, out;
    bool in_flat, out_flat, rectified = false;
    ConvShape conv{};
};

Stage stage_of(const LayerSpec& spec, const Shape& in, bool flat) {
    Stage s{&spec, in, in, flat, flat};
    const auto window = [&](int kernel_h, int kernel_w) {
        if (flat) refuse("plan: " + spec.kind + " needs an image");
        if (kernel_h < 1 || kernel_w < 1 || spec.stride_h < 1 || spec.stride_w < 1 || spec.pad_h < 0 || spec.pad_w < 0)
            refuse("plan: kernel, stride and padding of " + spec.kind + " must be positive");
        if (in.height + 2 * spec.pad_h < kernel_h || in.width + 2 * spec.pad_w < kernel_w)
            refuse("plan: the kernel of " + spec.kind + " is larger than its input");
    };
    if (spec.kind == "linear") {
        if (!flat || spec.outputs < 1) refuse("plan: a linear layer needs flat input and at least one output");
        s.out = {spec.outputs, 1, 1};
    } else if (spec.kind == "conv2d") {
        window(spec.kernel_h, spec.kernel_w);
        if (spec.outputs < 1) refuse("plan: a convolution needs at least one output channel");
        s.conv = {spec.outputs, in.channels, spec.kernel_h, spec.kernel_w,
                  spec.stride_h, spec.stride_w, spec.pad_h, spec.pad_w};
        s.out = s.conv.output(in);
    } else if (spec.kind == "maxpool2d" || spec.kind == "avgpool2d") {
        window(spec.kernel_h, spec.kernel_w);
        if (spec.pad_h != 0 || spec.pad_w != 0) refuse("plan: pooling with padding is not covered");
        s.out = {in.channels, (in.height - spec.kernel_h) / spec.stride_h + 1,
                 (in.width - spec.kernel_w) / spec.stride_w + 1};
    } else if (spec.kind == "flatten") {
        if (in.size() > std::numeric_limits<int>::max()) refuse("plan: too many features");
        s.out = {static_cast<int>(in.size()), 1, 1};
        s.out_flat = true;
    } else if (spec.kind == "dropout") {
        if (!(spec.rate >= 0.0f && spec.rate < 1.0f)) refuse("plan: the dropout rate must be in [0, 1)");
    } else if (spec.kind != "batchnorm") {
        refuse("plan: unknown layer '" + spec.kind + "'");
    }
    return s;
}

}  // namespace

Network::Network(const NetworkSpec& spec, const Kernels& kernels, const Settings& settings, const float* w,
                 const uint8_t* mask, int64_t n, const float* buffers, int64_t buffer_count)
    : kernels_(kernels), settings_(settings), squared_error_(spec.squared_error),
      blocks_((settings.batch_size + kernels.width - 1) / kernels.width), n_(n),
      buffers_(buffers, buffers + buffer_count) {
    build(spec, mask, n);
    const std::size_t size = parameters_.flat.size();
    parameters_.value = Buffer(size);
    if (settings.training) parameters_.gradient = Buffer(size);
    if (settings.training && settings.momentum != 0.0f) velocity_ = Buffer(size);
    for (std::size_t i = 0; i < size; ++i) {
        const int64_t at = parameters_.flat[i];
        if (at >= 0 && parameters_.kept[i]) parameters_.value.data()[i] = w[at];
        keeps_all_ = keeps_all_ && parameters_.kept[i];
    }
    if (settings.training && settings.proximal != 0.0f) {
        anchor_ = Buffer(size);
        std::copy_n(parameters_.value.data(), size, anchor_.data());
    }
    if (!keeps_all_) {
        keep_ = Buffer(size);
        for (std::size_t i = 0; i < size; ++i) keep_.data()[i] = parameters_.kept[i] ? 1.0f : 0.0f;
    }
}

Tensor* Network::keep(Tensor tensor) {
    tensors_.push_back(std::make_unique<Tensor>(std::move(tensor)));
    return tensors_.back().get();
}

void Network::build(const NetworkSpec& spec, const uint8_t* mask, int64_t n) {
    if (spec.input.channels < 1 || spec.input.height < 1 || spec.input.width < 1 ||
        spec.input.size() > std::numeric_limits<int32_t>::max())
        refuse("plan: the input shape must be positive");
    Shape shape = spec.input;
    bool flat = spec.flat_input, rectify_input = false;
    std::vector<Stage> stages;
    for (const LayerSpec& layer : spec.layers) {
        if (layer.kind == "relu") {
            (stages.empty() ? rectify_input : stages.back().rectified) = true;
            continue;
        }
        if (layer.kind == "dropout" && (!settings_.training || layer.rate == 0.0f)) continue;
        if (layer.kind == "flatten" && flat) continue;
        if (layer.kind == "flatten" && stages.empty()) {  // rows are flat already
            shape = {static_cast<int>(shape.size()), 1, 1};
            flat = true;
            continue;
        }
        stages.push_back(stage_of(layer, shape, flat));
        shape = stages.back().out;
        flat = stages.back().out_flat;
    }
    if (stages.empty() || !flat) refuse("plan: the network must end in flat outputs");
    outputs_ = shape.channels;
    if (rectify_input) refuse("plan: ReLU on the input is not covered");

    const int width = kernels_.width;
    const auto make = [&](const Shape& s, bool is_flat, const Border& border, int blocks) {
        return keep(is_flat ? Tensor::features(s.channels, blocks, width) : Tensor::plane(s, border, blocks, width));
    };
    const auto border_for = [&](std::size_t i) {
        return i < stages.size() && stages[i].spec->kind == "conv2d" ? stages[i].conv.input_border(stages[i].in)
                                                                     : Border{};
    };
    input_ = make(stages[0].in, stages[0].in_flat, border_for(0), blocks_);
    input_view_ = input_->flat ? features_as(*input_, {1, 1, input_->shape.channels}) : input_->view();

    Tensor* in = input_;
    Tensor* in_delta = nullptr;
    bool learned = false;  // some layer so far has parameters
    for (std::size_t i = 0; i < stages.size(); ++i) {
        const Stage& s = stages[i];
        const LayerSpec& l = *s.spec;
        const bool conv = l.kind == "conv2d", linear = l.kind == "linear", norm = l.kind == "batchnorm";
        Tensor* out = make(s.out, s.out_flat, border_for(i + 1), blocks_);
        const bool needs = learned && settings_.training;
        learned = learned || conv || linear || (norm && (l.weight >= 0 || l.bias >= 0));
        Tensor* out_delta = nullptr;
        if (settings_.training && (learned || i + 1 == stages.size())) {
            // A gradient is kept for the whole batch only where the layer below needs all of it at once.
            const bool whole = s.out_flat || norm;
            out_delta = make(s.out, s.out_flat, conv && needs ? s.conv.delta_border(s.in) : Border{}, whole ? blocks_ : 1);
        }
        const bool sparse = l.backend == "sparse";
        if ((linear || conv) && !sparse && l.backend != "dense") refuse("plan: unknown backend '" + l.backend + "'");
        std::unique_ptr<Layer> layer;
        if (linear) {
            check_span(l.weight, static_cast<int64_t>(l.outputs) * s.in.channels, n, "a weight");
            if (l.bias != -1) check_span(l.bias, l.outputs, n, "a bias");
            layer = std::make_unique<LinearLayer>(kernels_, parameters_, LinearShape{l.outputs, s.in.channels}, mask,
                                                  l.weight, l.bias, sparse, *in, needs);
        } else if (conv) {
            check_span(l.weight, static_cast<int64_t>(l.outputs) * s.conv.taps(), n, "a weight");
            if (l.bias != -1) check_span(l.bias, l.outputs, n, "a bias");
            layer = std::make_unique<ConvLayer>(kernels_, parameters_, s.conv, mask, l.weight, l.bias, sparse, *in,
                                                needs ? out_delta : nullptr);
        } else if (norm) {
            const auto size = static_cast<int64_t>(buffers_.size());
            if (l.weight != -1) check_span(l.weight, s.in.channels, n, "a scale");
            if (l.bias != -1) check_span(l.bias, s.in.channels, n, "a shift");
            check_span(l.running_mean, s.in.channels, size, "a running mean");
            check_span(l.running_var, s.in.channels, size, "a running variance");
            layer = std::make_unique<NormalizeLayer>(
                kernels_, parameters_,
                NormalizeSpec{l.weight, l.bias, l.running_mean, l.running_var, l.eps, l.momentum}, mask,
                buffers_.data(), s.in.channels, *in);
        } else if (l.kind == "flatten") {
            layer = std::make_unique<FlattenLayer>(kernels_);
        } else if (l.kind == "dropout") {
            layer = std::make_unique<DropoutLayer>(kernels_, l.rate, scramble(i));
        } else {
            layer = std::make_unique<PoolLayer>(kernels_, l.kernel_h, l.kernel_w, l.stride_h, l.stride_w,
                                                l.kind == "maxpool2d");
        }
        layer->rectified = s.rectified;
        layer->input_rectified = i > 0 && stages[i - 1].rectified;
        layer->in = in;
        layer->out = out;
        layer->in_delta = needs ? in_delta : nullptr;
        layer->out_delta = out_delta;
        layers_.push_back(std::move(layer));
        in = out;
        in_delta = out_delta;
    }
    used_inputs_ = layers_.front()->used_inputs();
}

Batch Network::batch_of(int examples) const {
    const int blocks = (examples + kernels_.width - 1) / kernels_.width;
    return {examples, blocks, blocks * kernels_.width, settings_.training, scramble(settings_.seed ^ scramble(step_))};
}

void Network::load(const float* const* rows, const Batch& batch) {
    const int width = kernels_.width;
    for (int b = 0; b < batch.blocks; ++b)
        kernels_.load_block(rows + b * width, std::min(width, batch.examples - b * width), input_view_, b,
                             used_inputs_.empty() ? nullptr : used_inputs_.data());
}

void Network::forward(const Batch& batch) {
    for (std::size_t i = 0; i < layers_.size();) {
        std::size_t end = i + 1;
        while (end < layers_.size() && !layers_[end]->barrier) ++end;
        for (std::size_t j = i; j < end; ++j) layers_[j]->forward_all(batch);
        for (int b = 0; b < batch.blocks; ++b)
            for (std::size_t j = i; j < end; ++j) layers_[j]->forward(batch, b);
        i = end;
    }
}

void Network::backward(const Batch& batch) {
    for (std::size_t i = layers_.size(); i > 0;) {
        std::size_t begin = i - 1;
        while (begin > 0 && !layers_[begin - 1]->barrier) --begin;
        for (std::size_t j = i; j > begin; --j) layers_[j - 1]->backward_all(batch);
        for (int b = 0; b < batch.blocks; ++b)
            for (std::size_t j = i; j > begin; --j) layers_[j - 1]->backward(batch, b);
        i = begin;
    }
}

double Network::loss(const Batch& batch, const int64_t* labels, const float* const* targets) {
    Layer& last = *layers_.back();
    const ptrdiff_t stride = last.out->channel;
    const float* out = last.out->data();
    float* delta = last.out_delta->data();
    double total = 0;
    if (!squared_error_) {
        total = kernels_.cross_entropy(out, delta, stride, outputs_, labels, batch.examples, batch.lanes,
                                       1.0f / static_cast<float>(batch.examples));
    } else {
        const float scale = 2.0f / (static_cast<float>(batch.examples) * static_cast<float>(outputs_));
        for (int k = 0; k < outputs_; ++k)
            for (int i = 0; i < batch.lanes; ++i) {
                const float error = i < batch.examples ? out[k * stride + i] - targets[i][k] : 0.0f;
                delta[k * stride + i] = scale * error;
                total += static_cast<double>(error) * static_cast<double>(error) / outputs_;
            }
    }
    if (last.rectified)
        for (int b = 0; b < batch.blocks; ++b) kernels_.gate(last.out_delta->view(), last.out->view(), b, b);
    return total;
}

double Network::epoch(const float* rows, const int64_t* order, int64_t count, const int64_t* labels,
                      const float* targets) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t size = input_size();
    const auto capacity = static_cast<std::size_t>(settings_.batch_size);
    std::vector<const float*> batch_rows(capacity), batch_targets(capacity);
    std::vector<int64_t> batch_labels(capacity);
    double total = 0;
    for (int64_t begin = 0; begin < count; begin += settings_.batch_size) {
        const Batch batch = batch_of(static_cast<int>(std::min<int64_t>(settings_.batch_size, count - begin)));
        for (int i = 0; i < batch.examples; ++i) {
            const int64_t at = order ? order[begin + i] : begin + i;
            const auto slot = static_cast<std::size_t>(i);
            batch_rows[slot] = rows + at * size;
            if (labels) batch_labels[slot] = labels[at];
            if (targets) batch_targets[slot] = targets + at * outputs_;
        }
        load(batch_rows.data(), batch);
        forward(batch);
        total += loss(batch, batch_labels.data(), batch_targets.data());
        backward(batch);
        kernels_.update({parameters_.value.data(), parameters_.gradient.data(), velocity_.data(), anchor_.data(),
                         keep_.data(), static_cast<int64_t>(parameters_.flat.size()), settings_.lr, settings_.momentum,
                         settings_.weight_decay, settings_.proximal, settings_.nesterov, step_ == 0});
        ++step_;
    }
    return total / static_cast<double>(count);
}

void Network::predict(const float* rows, int64_t count, float* out) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t size = input_size();
    const auto capacity = static_cast<std::size_t>(settings_.batch_size);
    std::vector<const float*> batch_rows(capacity);
    std::vector<float*> batch_out(capacity);
    const Tensor& last = *layers_.back()->out;
    const View view = features_as(last, {1, 1, outputs_});
    for (int64_t begin = 0; begin < count; begin += settings_.batch_size) {
        const Batch batch = batch_of(static_cast<int>(std::min<int64_t>(settings_.batch_size, count - begin)));
        for (int i = 0; i < batch.examples; ++i) {
            batch_rows[static_cast<std::size_t>(i)] = rows + (begin + i) * size;
            batch_out[static_cast<std::size_t>(i)] = out + (begin + i) * outputs_;
        }
        load(batch_rows.data(), batch);
        forward(batch);
        for (int b = 0; b < batch.blocks; ++b)
            kernels_.store_block(batch_out.data() + b * kernels_.width,
                                 std::min(kernels_.width, batch.examples - b * kernels_.width), view, b);
    }
}

void Network::weights(float* out) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::fill(out, out + n_, 0.0f);
    for (std::size_t i = 0; i < parameters_.flat.size(); ++i)
        if (parameters_.flat[i] >= 0 && parameters_.kept[i]) out[parameters_.flat[i]] = parameters_.value.data()[i];
}

void Network::buffers(float* out) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::copy(buffers_.begin(), buffers_.end(), out);
}

std::vector<std::string> Network::backends() const {
    std::vector<std::string> out;
    for (const auto& layer : layers_)
        if (!layer->backend.empty()) out.push_back(layer->backend);
    return out;
}

}  // namespace fedsparsify
