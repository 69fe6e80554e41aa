// Compiles layers to steps on slots of a workspace.
#include <algorithm>
#include <cstdint>

#include "infer_plan.hpp"

namespace fedsparsify {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

int64_t checked(int64_t floats) {
    if (floats > std::numeric_limits<int32_t>::max()) refuse("an activation of one block of examples exceeds 2^31 values");
    return floats;
}

bool windowed(const InferLayer& l) { return l.kind == "conv" || l.kind == "maxpool" || l.kind == "avgpool"; }

int steps_y(const InferLayer& l) { return windowed(l) || l.kind == "subsample" ? l.stride_h : 1; }
int steps_x(const InferLayer& l) { return windowed(l) || l.kind == "subsample" ? l.stride_w : 1; }

// Zeros, or a neighbour's pixels, that a layer reads around its input, for outputs of the given size.
Border border_of(const InferLayer& l, const Shape& in, const Shape& out) {
    if (l.kind != "conv") return {};
    return {l.pad_h, l.pad_w, std::max(0, (out.height - 1) * l.stride_h + l.kernel_h - l.pad_h - in.height),
            std::max(0, (out.width - 1) * l.stride_w + l.kernel_w - l.pad_w - in.width)};
}

Shape part(const Shape& s, const Grid& g) { return {s.channels, s.height / g.y, s.width / g.x}; }

}  // namespace

std::vector<Shape> infer_shapes(const std::vector<InferLayer>& layers, const Shape& input, bool flat,
                                std::vector<bool>& flats) {
    std::vector<Shape> shapes{input};
    flats.assign(1, flat);
    for (const InferLayer& l : layers) {
        if (l.inputs.empty() || l.inputs.size() > 2) refuse("a layer must read one value or two");
        for (int i : l.inputs)
            if (i < 0 || i >= static_cast<int>(shapes.size())) refuse("a layer reads a value that is not there");
        const Shape in = shapes[static_cast<std::size_t>(l.inputs[0])];
        const bool in_flat = flats[static_cast<std::size_t>(l.inputs[0])];
        Shape out = in;
        bool out_flat = in_flat;
        const auto size_is = [&](const std::vector<float>& v, int64_t n, const char* what) {
            if (!v.empty() && static_cast<int64_t>(v.size()) != n) refuse(std::string(what) + " has a wrong size");
        };
        if (windowed(l) || l.kind == "subsample" || l.kind == "pad_channels" || l.kind == "mean")
            if (in_flat) refuse(l.kind + " needs planes");
        if (l.kernel_h < 1 || l.kernel_w < 1 || l.stride_h < 1 || l.stride_w < 1 || l.pad_h < 0 || l.pad_w < 0 ||
            std::max({l.kernel_h, l.kernel_w, l.stride_h, l.stride_w, l.pad_h, l.pad_w}) > (1 << 20))
            refuse("a window is out of range");
        if (windowed(l)) {
            if (l.kind != "conv" && (l.pad_h || l.pad_w)) refuse("pooling with padding is not covered");
            out.height = (in.height + 2 * l.pad_h - l.kernel_h) / l.stride_h + 1;
            out.width = (in.width + 2 * l.pad_w - l.kernel_w) / l.stride_w + 1;
            if (in.height + 2 * l.pad_h < l.kernel_h || in.width + 2 * l.pad_w < l.kernel_w)
                refuse("a window is larger than its input");
            if (l.kind == "conv") {
                out.channels = l.outputs;
                if (l.outputs < 1 || static_cast<int64_t>(l.weight.size()) !=
                                         static_cast<int64_t>(l.outputs) * in.channels * l.kernel_h * l.kernel_w)
                    refuse("a convolution's weight has a wrong size");
                size_is(l.bias, l.outputs, "a bias");
                size_is(l.map, out.size(), "a map of biases");
            }
        } else if (l.kind == "linear") {
            if (!in_flat) refuse("linear needs features");
            if (l.outputs < 1 || static_cast<int64_t>(l.weight.size()) != static_cast<int64_t>(l.outputs) * in.channels)
                refuse("a linear layer's weight has a wrong size");
            size_is(l.bias, l.outputs, "a bias");
            out = {l.outputs, 1, 1};
        } else if (l.kind == "combine") {
            size_is(l.scale, in.channels, "a scale");
            size_is(l.shift, in.channels, "a shift");
            if (l.inputs.size() == 2) {
                const auto other = static_cast<std::size_t>(l.inputs[1]);
                if (flats[other] != in_flat || shapes[other].channels != in.channels ||
                    shapes[other].height != in.height || shapes[other].width != in.width)
                    refuse("values of different shapes cannot be added");
            }
        } else if (l.kind == "subsample") {
            out.height = (in.height + l.stride_h - 1) / l.stride_h;
            out.width = (in.width + l.stride_w - 1) / l.stride_w;
        } else if (l.kind == "pad_channels") {
            if (l.before < 0 || l.outputs < in.channels + l.before) refuse("padded channels are out of range");
            out.channels = l.outputs;
        } else if (l.kind == "mean") {
            out = {in.channels, 1, 1};
            out_flat = true;
        } else if (l.kind == "flatten") {
            out = {static_cast<int>(checked(in.size())), 1, 1};
            out_flat = true;
        } else {
            refuse("layer '" + l.kind + "' is not covered");
        }
        if (l.inputs.size() != (l.kind == "combine" ? l.inputs.size() : 1)) refuse("a layer reads too many values");
        checked(out.size() * 16);
        shapes.push_back(out);
        flats.push_back(out_flat);
    }
    if (layers.empty() || !flats.back()) refuse("the last value must be features");
    return shapes;
}

InferCompiler::InferCompiler(const std::vector<InferLayer>& layers, const std::vector<Shape>& shapes,
                             const std::vector<bool>& flats, int width)
    : layers_(layers), shapes_(shapes), flats_(flats), width_(width) {}

// The cut of the output with the most lanes that leaves every output pixel in the lane of what it reads.
Grid InferCompiler::grid_of(const InferLayer& l, const Shape& in, const Shape& out) const {
    if (in.height != out.height * steps_y(l) || in.width != out.width * steps_x(l)) return {};
    Grid best;
    int best_border = std::numeric_limits<int>::max();
    for (int y = 1; y <= width_; ++y)
        for (int x = 1; x * y <= width_; ++x) {
            if (out.height % y || out.width % x) continue;
            const Shape a = part(in, {y, x}), b = part(out, {y, x});
            const Border border = border_of(l, a, b);
            if (std::max(border.top, border.bottom) > a.height || std::max(border.left, border.right) > a.width)
                continue;
            const int extent = a.height + a.width;
            if (x * y > best.x * best.y || (x * y == best.x * best.y && extent < best_border)) {
                best = {y, x};
                best_border = extent;
            }
        }
    return best;
}

int InferCompiler::add_plane(InferPlan& plan, const Shape& whole, const Grid& grid) const {
    Slot s;
    s.grid = grid;
    s.shape = part(whole, grid);
    s.rows = s.shape.height;
    plan.slots.push_back(s);
    return static_cast<int>(plan.slots.size()) - 1;
}

int InferCompiler::add_flat(InferPlan& plan, int features) const {
    Slot s;
    s.flat = true;
    s.shape = {features, 1, 1};
    plan.slots.push_back(s);
    return static_cast<int>(plan.slots.size()) - 1;
}

// The slot of a value in a given grid; a step that changes the grid is added where there is none yet.
int InferCompiler::in_grid(InferPlan& plan, std::vector<std::vector<int>>& held, int value, const Grid& grid) const {
    auto& slots = held[static_cast<std::size_t>(value)];
    for (int s : slots)
        if (plan.slots[static_cast<std::size_t>(s)].grid == grid) return s;
    const int out = add_plane(plan, shapes_[static_cast<std::size_t>(value)], grid);
    InferStep step;
    step.in = slots[0];
    step.out = out;
    plan.steps.push_back(step);
    slots.push_back(out);
    return out;
}

InferPlan InferCompiler::compile(bool single, int vectors) const {
    InferPlan plan;
    plan.single = single;
    plan.vectors = vectors;
    std::vector<std::vector<int>> held(shapes_.size());
    double work = 0, weighted = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const InferLayer& l = layers_[i];
        const auto from = static_cast<std::size_t>(l.inputs[0]);
        const Shape &in = shapes_[from], &out = shapes_[i + 1];
        InferStep step;
        step.layer = &l;
        Grid grid;
        if (!flats_[from]) {
            if (single) grid = grid_of(l, in, l.kind == "flatten" || l.kind == "mean" ? in : out);
            if (i == 0 || held[from].empty()) held[from].push_back(add_plane(plan, in, grid));
            if (single && (l.kind == "flatten" || l.kind == "mean" || l.kind == "combine"))
                grid = plan.slots[static_cast<std::size_t>(held[from][0])].grid;
            step.in = in_grid(plan, held, l.inputs[0], grid);
            if (l.inputs.size() == 2) step.more = in_grid(plan, held, l.inputs[1], grid);
        } else {
            if (held[from].empty()) held[from].push_back(add_flat(plan, in.channels));
            step.in = held[from][0];
            if (l.inputs.size() == 2) step.more = held[static_cast<std::size_t>(l.inputs[1])][0];
        }
        step.out = flats_[i + 1] ? add_flat(plan, out.channels) : add_plane(plan, out, grid);
        held[i + 1].push_back(step.out);
        if (l.kind == "conv") {
            const Slot& source = plan.slots[static_cast<std::size_t>(step.in)];
            const Border b = border_of(l, source.shape, plan.slots[static_cast<std::size_t>(step.out)].shape);
            plan.slots[static_cast<std::size_t>(step.in)].border.widen(b);
            step.exchange = single && (grid.y > 1 || grid.x > 1) && (b.top || b.left || b.bottom || b.right);
            const double entries = static_cast<double>(l.weight.size() - static_cast<std::size_t>(std::count(
                                       l.weight.begin(), l.weight.end(), 0.0f))) * out.height * out.width;
            work += entries;
            weighted += entries * width_ / (grid.y * grid.x);
        }
        plan.steps.push_back(std::move(step));
    }
    plan.share = weighted > 0 ? work / weighted : 1;
    fuse_pools(plan);
    group(plan);
    lay_out(plan);
    for (InferStep& step : plan.steps) {
        if (!step.layer) continue;
        if (step.layer->kind == "conv") compile_conv(plan, step);
        if (step.layer->kind == "linear") compile_linear(plan, step);
    }
    find_used(plan);
    return plan;
}

// A convolution whose outputs only a pooling of 2 x 2 reads pools them itself, while they are in registers.
void InferCompiler::fuse_pools(InferPlan& plan) const {
    if (plan.single) return;
    for (std::size_t k = 0; k + 1 < plan.steps.size(); ++k) {
        InferStep &conv = plan.steps[k], &pool = plan.steps[k + 1];
        if (!conv.layer || conv.layer->kind != "conv" || !pool.layer || pool.layer->kind != "maxpool") continue;
        const InferLayer& l = *pool.layer;
        const Shape& between = plan.slots[static_cast<std::size_t>(conv.out)].shape;
        const auto readers = std::count_if(plan.steps.begin(), plan.steps.end(), [&](const InferStep& s) {
            return s.in == conv.out || s.more == conv.out;
        });
        if (pool.in != conv.out || readers != 1 || l.kernel_h != 2 || l.kernel_w != 2 || l.stride_h != 2 ||
            l.stride_w != 2 || between.height % 2 || between.width % 2)
            continue;
        plan.slots[static_cast<std::size_t>(conv.out)].unused = true;
        conv.out = pool.out;
        conv.pool = true;
        plan.steps.erase(plan.steps.begin() + static_cast<std::ptrdiff_t>(k) + 1);
    }
}

// Large values between convolutions are made a few rows at a time and used up at once, while they are in the cache.
void InferCompiler::group(InferPlan& plan) const {
    constexpr int64_t large = 48 << 10;  // floats
    const int n = static_cast<int>(plan.steps.size());
    std::vector<int> readers(plan.slots.size(), 0);
    for (const InferStep& s : plan.steps) {
        ++readers[static_cast<std::size_t>(s.in)];
        if (s.more >= 0) ++readers[static_cast<std::size_t>(s.more)];
    }
    for (int first = 0; first < n;) {
        int end = first + 1, convolutions = 0;
        const auto starts = [&](int i) {
            const InferStep& s = plan.steps[static_cast<std::size_t>(i)];
            return s.layer && windowed(*s.layer);
        };
        if (!plan.single && starts(first)) {
            convolutions = plan.steps[static_cast<std::size_t>(first)].layer->kind == "conv";
            while (end < n && starts(end)) {
                const InferStep &last = plan.steps[static_cast<std::size_t>(end - 1)],
                                &next = plan.steps[static_cast<std::size_t>(end)];
                const Slot& between = plan.slots[static_cast<std::size_t>(last.out)];
                const bool conv = next.layer->kind == "conv";
                if (next.in != last.out || readers[static_cast<std::size_t>(last.out)] != 1 ||
                    between.shape.size() * width_ < large || last.layer->kind != "conv" || last.pool ||
                    (conv && convolutions == 2))
                    break;
                convolutions += conv;
                ++end;
            }
        }
        plan.groups.emplace_back(first, end);
        first = end;
    }
    for (const auto& [first, end] : plan.groups)
        for (int k = first; k + 1 < end; ++k) {
            // A band of the group's last value is one row; this is what it needs of value k.
            int rows = 1;
            for (int j = end - 1; j > k; --j) {
                const InferStep& step = plan.steps[static_cast<std::size_t>(j)];
                const InferLayer& l = *step.layer;
                rows = ((step.pool ? 2 * rows : rows) - 1) * l.stride_h + l.kernel_h;
            }
            Slot& s = plan.slots[static_cast<std::size_t>(plan.steps[static_cast<std::size_t>(k)].out)];
            s.band = true;
            s.rows = rows;
        }
    for (const auto& [first, end] : plan.groups) {
        // Rows that a step makes at a time.
        int rows = end - first > 1 ? 1 : 0;
        for (int k = end - 1; k >= first; --k) {
            InferStep& s = plan.steps[static_cast<std::size_t>(k)];
            if (s.pool) rows *= 2;
            s.height = rows ? rows : plan.slots[static_cast<std::size_t>(s.out)].shape.height * (s.pool ? 2 : 1);
            if (rows) rows *= s.layer->stride_h;
        }
    }
}

void InferCompiler::lay_out(InferPlan& plan) const {
    plan.floats = 0;
    for (Slot& s : plan.slots) {
        if (s.unused) {
            plan.place.push_back(0);
            continue;
        }
        if (s.flat) {
            s.channel = plan.single ? 1 : plan.vectors * width_;
            s.size = checked(s.shape.channels * s.channel);
        } else {
            const int row_px = s.shape.width + s.border.left + s.border.right;
            s.channel = row_px * width_;
            s.row = spread_row(checked(static_cast<int64_t>(row_px) * width_ * s.shape.channels), width_);
            const int above = s.band ? 0 : s.border.top, below = s.band ? 0 : s.border.bottom;
            s.origin = above * s.row + s.border.left * width_;
            s.size = checked((s.rows + above + below) * static_cast<int64_t>(s.row));
        }
        plan.place.push_back(plan.floats + 16);
        plan.floats += (s.size + 47) / 16 * 16;  // room for a load that reaches past either end
    }
    plan.sums = plan.floats + 16;
    int64_t most = 0;
    for (const InferStep& s : plan.steps)
        if (s.layer && s.layer->kind == "conv") most = std::max<int64_t>(most, s.layer->outputs);
    plan.floats = checked(plan.sums + most * tile_pixels * width_ + 32);
}

}  // namespace fedsparsify
