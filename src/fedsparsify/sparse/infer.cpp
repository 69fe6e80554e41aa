// Runs a compiled network.
#include "infer.hpp"

#include <algorithm>
#include <sstream>

#include "infer_plan.hpp"

namespace fedsparsify {
namespace {

constexpr int most_vectors = 4;

// The values of one run: slots with their memory, and which rows of them are there.
class Runner {
public:
    Runner(const InferPlan& plan, const Kernels& kernels, float* memory)
        : plan_(plan), kernels_(kernels), memory_(memory), window_(plan.slots.size(), 0), done_(plan.slots.size(), 0) {}

    const Slot& slot(int i) const { return plan_.slots[static_cast<std::size_t>(i)]; }
    float* features(int i) const { return memory_ + plan_.place[static_cast<std::size_t>(i)]; }
    // Pixel (0, 0), which of a band need not be there.
    float* pixels(int i) const {
        return features(i) + slot(i).origin - window_[static_cast<std::size_t>(i)] * slot(i).row;
    }
    View view(int i) const {
        const Slot& s = slot(i);
        if (!s.flat)
            return {pixels(i), 0, s.channel, s.row, kernels_.width, 1, s.shape.channels, s.shape.height, s.shape.width};
        return {features(i), 0, s.channel, 0, kernels_.width, 1, s.shape.channels, 1, plan_.vectors};
    }

    void group(int first, int end) {
        if (end - first == 1) {
            const InferStep& s = step(first);
            run(s, 0, slot(s.out).flat ? 0 : slot(s.out).shape.height);
            return;
        }
        const int height = slot(step(end - 1).out).shape.height;
        std::vector<std::pair<int, int>> rows(static_cast<std::size_t>(end - first));
        for (int y = 0; y < height; ++y) {
            rows.back() = {y, y + 1};
            for (int k = end - 1; k > first; --k) {
                const InferLayer& l = *step(k).layer;
                const int each = step(k).pool ? 2 : 1;
                const int a = rows[static_cast<std::size_t>(k - first)].first * each;
                const int b = rows[static_cast<std::size_t>(k - first)].second * each;
                rows[static_cast<std::size_t>(k - 1 - first)] = {a * l.stride_h - l.pad_h,
                                                                 (b - 1) * l.stride_h - l.pad_h + l.kernel_h};
            }
            for (int k = first; k < end; ++k) {
                const auto [a, b] = rows[static_cast<std::size_t>(k - first)];
                if (k + 1 == end)
                    run(step(k), a, b);
                else
                    advance(step(k), a, b, y == 0);
            }
        }
    }

private:
    const InferStep& step(int i) const { return plan_.steps[static_cast<std::size_t>(i)]; }

    // Makes rows [a, b) of a band be there, and lets go of those before.
    void advance(const InferStep& s, int a, int b, bool fresh) {
        const Slot& out = slot(s.out);
        int& window = window_[static_cast<std::size_t>(s.out)];
        int& done = done_[static_cast<std::size_t>(s.out)];
        float* base = features(s.out);
        if (fresh || done < a)
            done = a;
        else
            std::memmove(base, base + (a - window) * out.row, sizeof(float) * static_cast<std::size_t>((done - a) * out.row));
        window = a;
        const auto clear = [&](int from, int to) {
            if (from < to)
                std::memset(base + (from - a) * out.row, 0, sizeof(float) * static_cast<std::size_t>((to - from) * out.row));
        };
        const int height = out.shape.height;
        clear(done, std::min(b, 0));
        const int from = std::max(done, 0), to = std::min(b, height);
        if (from < to) run(s, from, to);
        clear(std::max(done, height), b);
        done = b;
    }

    void run(const InferStep& s, int y0, int y1) {
        if (!s.layer) return regrid(s);
        const InferLayer& l = *s.layer;
        if (l.kind == "conv") return conv(s, y0, y1);
        if (l.kind == "linear") return linear(s);
        if (l.kind == "maxpool" || l.kind == "avgpool") return pool(s, y0, y1);
        if (l.kind == "flatten") return flatten(s);
        if (l.kind == "mean") return mean(s);
        if (slot(s.in).flat && plan_.single) return combine_features(s);
        View in = view(s.in), out = view(s.out);
        View more{};
        if (s.more >= 0) more = view(s.more);
        if (l.kind == "subsample") {
            in.row *= l.stride_h;
            in.px *= l.stride_w;
        }
        if (l.kind == "pad_channels") {  // the others were zero from the start
            out.data += l.before * out.channel;
            out.channels = in.channels;
        }
        kernels_.combine({in, more, out, l.scale.empty() ? nullptr : l.scale.data(),
                          l.shift.empty() ? nullptr : l.shift.data(), l.rectify});
    }

    void conv(const InferStep& s, int y0, int y1) {
        const InferLayer& l = *s.layer;
        const Slot &in = slot(s.in), &out = slot(s.out);
        if (s.exchange)
            kernels_.exchange_halo({pixels(s.in), in.channel, in.row, in.shape.channels, in.shape.height, in.shape.width,
                                    in.border.top, in.border.left, in.border.bottom, in.border.right, in.grid.y,
                                    in.grid.x});
        float* const to = pixels(s.out) + y0 * out.row;
        const int each = s.pool ? 2 : 1;
        y0 *= each, y1 *= each;
        kernels_.tile_conv({s.twos.data(), s.runs.data(), static_cast<int>(s.runs.size()), pixels(s.in) + y0 * l.stride_h * in.row, l.stride_h * in.row,
                            static_cast<ptrdiff_t>(l.stride_w) * kernels_.width, to,
                            out.channel, out.row, l.bias.empty() ? nullptr : l.bias.data(),
                            s.map.empty() ? nullptr : s.map.data() + y0 * s.map_row, s.map_channel, s.map_row, s.map_px,
                            l.rectify, s.pool, y1 - y0, out.shape.width * each, s.tile_rows, s.tile_pixels,
                            memory_ + plan_.sums});
    }

    void linear(const InferStep& s) {
        const InferLayer& l = *s.layer;
        const float* bias = l.bias.empty() ? nullptr : l.bias.data();
        if (plan_.single)
            kernels_.vector_linear({s.view(), s.dense ? l.weight.data() : nullptr, source_ && s.in == 0 ? source_ : features(s.in),
                                    features(s.out), bias, l.rectify, slot(s.in).shape.channels, l.outputs});
        else
            kernels_.lane_linear({s.view(), features(s.in), features(s.out), bias, l.rectify, plan_.vectors});
    }

    void pool(const InferStep& s, int y0, int y1) {
        const InferLayer& l = *s.layer;
        View in = view(s.in), out = view(s.out);
        in.data += y0 * l.stride_h * in.row;
        out.data += y0 * out.row;
        out.height = y1 - y0;
        if (l.kind == "maxpool" && l.kernel_h == 2 && l.kernel_w == 2 && l.stride_h == 2 && l.stride_w == 2)
            kernels_.max_pool_pairs(in, out);
        else
            kernels_.pool({in, out, l.kernel_h, l.kernel_w, l.stride_h, l.stride_w, l.kind == "maxpool"}, 0);
    }

    // Where pixel (y, x) of an image lies in a plane whose lanes are parts of it.
    ptrdiff_t pixel(const Slot& s, int y, int x) const {
        const int h = s.shape.height, w = s.shape.width;
        return y % h * s.row + static_cast<ptrdiff_t>(x % w) * kernels_.width + y / h * s.grid.x + x / w;
    }

    template <class F>
    void each_pixel(const Slot& s, F f) const {
        for (int c = 0; c < s.shape.channels; ++c)
            for (int y = 0; y < s.shape.height * s.grid.y; ++y)
                for (int x = 0; x < s.shape.width * s.grid.x; ++x) f(c * s.channel + pixel(s, y, x), c, y, x);
    }

    void regrid(const InferStep& s) {
        const Slot &in = slot(s.in), &out = slot(s.out);
        const float* from = pixels(s.in);
        float* to = pixels(s.out);
        each_pixel(out, [&](ptrdiff_t at, int c, int y, int x) { to[at] = from[c * in.channel + pixel(in, y, x)]; });
    }

    void flatten(const InferStep& s) {
        const Slot& in = slot(s.in);
        float* to = features(s.out);
        if (in.flat) {
            std::memcpy(to, features(s.in), sizeof(float) * static_cast<std::size_t>(in.size));
        } else if (plan_.single) {
            const float* from = pixels(s.in);
            each_pixel(in, [&](ptrdiff_t at, int, int, int) { *to++ = from[at]; });
        } else {
            const ptrdiff_t px = slot(s.out).channel;
            const View out{to, 0, px * in.shape.height * in.shape.width, px * in.shape.width, px, 1,
                           in.shape.channels, in.shape.height, in.shape.width};
            kernels_.copy_block(view(s.in), out, 0, 0);
        }
    }

    void mean(const InferStep& s) {
        const Slot& in = slot(s.in);
        if (!plan_.single) return kernels_.pixel_means(view(s.in), features(s.out));
        const int lanes = in.grid.y * in.grid.x;
        std::vector<float> sums(static_cast<std::size_t>(in.shape.channels) * static_cast<std::size_t>(kernels_.width));
        kernels_.pixel_means(view(s.in), sums.data());
        for (int c = 0; c < in.shape.channels; ++c) {
            float total = 0;
            for (int i = 0; i < lanes; ++i) total += sums[static_cast<std::size_t>(c * kernels_.width + i)];
            features(s.out)[c] = total / static_cast<float>(lanes);
        }
    }

    void combine_features(const InferStep& s) {
        const InferLayer& l = *s.layer;
        const float *in = features(s.in), *more = s.more >= 0 ? features(s.more) : nullptr;
        float* out = features(s.out);
        for (int i = 0; i < slot(s.in).shape.channels; ++i) {
            float v = in[i];
            if (!l.scale.empty()) v *= l.scale[static_cast<std::size_t>(i)];
            if (!l.shift.empty()) v += l.shift[static_cast<std::size_t>(i)];
            if (more) v += more[i];
            out[i] = l.rectify && v < 0 ? 0.0f : v;
        }
    }

public:
    // One image: parts of it to the lanes, or, for features, no copy at all where linear layers alone read them.
    void load_single(const float* x) {
        const Slot& in = slot(0);
        if (!in.flat) {
            float* to = pixels(0);
            each_pixel(in, [&](ptrdiff_t at, int, int, int) { to[at] = *x++; });
            return;
        }
        bool copy = false;
        for (const InferStep& s : plan_.steps)
            copy |= (s.in == 0 && s.layer->kind != "linear") || s.more == 0;
        if (copy)
            std::memcpy(features(0), x, sizeof(float) * static_cast<std::size_t>(in.shape.channels));
        else
            source_ = x;
    }

    // Images to the lanes; where there are too few, the last one fills up.
    void load_batch(const float* x, int valid) {
        const Slot& in = slot(0);
        const int W = kernels_.width;
        const int64_t size = in.shape.size();
        for (int v = 0; v < plan_.vectors; ++v) {
            const float* rows[64];
            for (int i = 0; i < W; ++i) rows[i] = x + std::min(v * W + i, valid - 1) * size;
            View to = view(0);
            if (in.flat) to = {features(0) + v * W, 0, 0, 0, in.channel, 1, 1, 1, in.shape.channels};
            kernels_.load_block(rows, W, to, 0, plan_.used.empty() ? nullptr : plan_.used.data());
        }
    }

    void store(float* out, int valid) const {
        const int last = plan_.steps.back().out, outputs = slot(last).shape.channels;
        const float* from = features(last);
        if (plan_.single) {
            std::memcpy(out, from, sizeof(float) * static_cast<std::size_t>(outputs));
            return;
        }
        const ptrdiff_t stride = slot(last).channel;
        for (int i = 0; i < valid; ++i)
            for (int r = 0; r < outputs; ++r) out[static_cast<int64_t>(i) * outputs + r] = from[r * stride + i];
    }

private:
    const InferPlan& plan_;
    const Kernels& kernels_;
    float* memory_;
    const float* source_ = nullptr;
    std::vector<int> window_, done_;
};

}  // namespace

InferNetwork::InferNetwork(std::vector<InferLayer> layers, const Shape& input, bool flat, const Kernels& kernels)
    : layers_(std::move(layers)), input_(input), flat_(flat), kernels_(kernels) {
    if (input.channels < 1 || input.height < 1 || input.width < 1) throw std::invalid_argument("the input is empty");
    shapes_ = infer_shapes(layers_, input_, flat_, flats_);
    for (InferLayer& l : layers_)
        l.kept = static_cast<int64_t>(l.weight.size()) - std::count(l.weight.begin(), l.weight.end(), 0.0f);
    outputs_ = shapes_.back().channels;
    const InferCompiler compiler(layers_, shapes_, flats_, kernels_.width);
    single_ = compiler.compile(true, 1);
    const bool planes = std::find(flats_.begin(), flats_.end(), false) != flats_.end();
    for (int vectors = 1; vectors <= (planes ? 1 : most_vectors); vectors *= 2)
        batch_.push_back(compiler.compile(false, vectors));
    for (InferLayer& l : layers_)
        if (std::none_of(single_.steps.begin(), single_.steps.end(),
                         [&](const InferStep& s) { return s.layer == &l && s.dense; }))
            l.weight = {};
    // A block of images costs as much with one image as with all. Parts of an image cost a little more than images do,
    // for their borders; single features cost about half a vector of them.
    const double worth = planes ? 0.75 * kernels_.width * single_.share : 3;
    most_single_ = std::max(1, static_cast<int>(worth));
}

void InferNetwork::run_block(const InferPlan& plan, Buffer& memory, const float* x, int valid, float* out) const {
    // From a megabyte on, large pages pay: a tile touches a short run in each of many channels.
    constexpr int64_t large = int64_t{1} << 18;
    if (memory.size() == 0)
        memory = Buffer(static_cast<std::size_t>(plan.floats < large ? plan.floats : std::max(plan.floats, 2 * large)));
    Runner runner(plan, kernels_, memory.data());
    if (plan.single)
        runner.load_single(x);
    else
        runner.load_batch(x, valid);
    for (const auto& [first, end] : plan.groups) runner.group(first, end);
    runner.store(out, valid);
}

void InferNetwork::run(const float* x, int64_t count, float* out) const {
    std::unique_ptr<Workspace> workspace;
    {
        const std::lock_guard lock(mutex_);
        if (!free_.empty()) {
            workspace = std::move(free_.back());
            free_.pop_back();
        }
    }
    if (!workspace) workspace = std::make_unique<Workspace>();
    const int64_t in = inputs();
    while (count > 0) {
        if (count <= most_single_) {
            run_block(single_, workspace->single, x, 1, out);
            x += in, out += outputs_, --count;
            continue;
        }
        // The widest plan that the images fill, or the narrowest that holds the rest of them.
        std::size_t p = 0;
        while (p + 1 < batch_.size() && count > batch_[p].vectors * kernels_.width) ++p;
        const InferPlan& plan = batch_[p];
        const auto valid = static_cast<int>(std::min<int64_t>(count, plan.vectors * kernels_.width));
        run_block(plan, workspace->batch[p], x, valid, out);
        x += valid * in, out += valid * outputs_, count -= valid;
    }
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(workspace));
}

int64_t InferNetwork::multiply_adds() const {
    int64_t total = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i)
        total += layers_[i].kept * shapes_[i + 1].height * shapes_[i + 1].width;
    return total;
}

int64_t InferNetwork::workspace_bytes() const {
    int64_t floats = single_.floats;
    for (const InferPlan& p : batch_) floats += p.floats;
    return 4 * floats;
}

std::string InferNetwork::describe() const {
    std::ostringstream text;
    for (const InferPlan* plan : {&single_, static_cast<const InferPlan*>(&batch_.back())}) {
        text << (plan->single ? "single" : "batch") << ": ";
        for (const auto& [first, end] : plan->groups) {
            text << (end - first > 1 ? "[" : "");
            for (int k = first; k < end; ++k) {
                const InferStep& s = plan->steps[static_cast<std::size_t>(k)];
                text << (k > first ? " " : "") << (s.layer ? s.layer->kind : "regrid");
                if (s.layer && s.layer->kind == "conv") {
                    const Grid& g = plan->slots[static_cast<std::size_t>(s.out)].grid;
                    text << (s.pool ? "+maxpool" : "") << "(" << s.tile_rows << "x" << s.tile_pixels << " grid " << g.y << "x" << g.x << ")";
                }
                if (s.dense) text << "(dense)";
            }
            text << (end - first > 1 ? "] " : " ");
        }
        text << "\n";
    }
    return text.str();
}

}  // namespace fedsparsify
