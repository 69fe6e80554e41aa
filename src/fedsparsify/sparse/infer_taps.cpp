// Turns the weights that are left into taps: which one reads where, in the order in which the kernels go through them.
#include <algorithm>

#include "infer_plan.hpp"

namespace fedsparsify {
namespace {

TwoTaps two(const Tap& a, const Tap& b) { return {{a.weight, b.weight}, {a.offset, b.offset}}; }

double density_of(const std::vector<float>& weight) {
    const auto zeros = std::count(weight.begin(), weight.end(), 0.0f);
    return 1 - static_cast<double>(zeros) / static_cast<double>(weight.size());
}

// The outputs that a convolution computes, which it may pool before it writes them.
Shape computed(const InferStep& step, const Slot& out) {
    const int each = step.pool ? 2 : 1;
    return {out.shape.channels, out.shape.height * each, out.shape.width * each};
}

}  // namespace

void InferCompiler::compile_conv(const InferPlan& plan, InferStep& step) const {
    const Slot &in = plan.slots[static_cast<std::size_t>(step.in)], &out = plan.slots[static_cast<std::size_t>(step.out)];
    choose_tile(out, step);
    find_taps(in, step);
    check_taps(in, out, step);
    if (!step.layer->map.empty()) spread_map(plan, out, step);
}

void InferCompiler::choose_tile(const Slot& out, InferStep& step) const {
    // As many sums as the registers hold, and of those tiles the one that reads the fewest pixels.
    const Shape made = computed(step, out);
    double most = 0;
    for (int rows = step.pool ? 2 : 1; rows <= (step.pool ? 2 : std::min(tile_rows, made.height)); ++rows) {
        const int pixels = tile_pixels / rows, across = (made.width + pixels - 1) / pixels;
        const int down = (step.height + rows - 1) / rows;
        const double sums = static_cast<double>(step.height) / down * made.width / across;
        if (sums < most) continue;
        most = sums;
        step.tile_rows = rows;
        step.tile_pixels = pixels;
    }
}

void InferCompiler::find_taps(const Slot& in, InferStep& step) const {
    const InferLayer& l = *step.layer;
    const int channels = in.shape.channels, area = l.kernel_h * l.kernel_w, taps = channels * area;
    // In 64 bits: a stride that no second position needs may be of any size.
    const int64_t high = int64_t{step.tile_rows - 1} * l.stride_h + l.kernel_h;
    const int64_t wide = int64_t{step.tile_pixels - 1} * l.stride_w + l.kernel_w;
    const auto fit = static_cast<int>(std::min<int64_t>(channels, cache_bytes / (high * wide * width_ * 4)));
    const int per = std::max(1, fit);
    const int blocks = (channels + per - 1) / per, each = (channels + blocks - 1) / blocks;

    const auto px = static_cast<int32_t>(l.stride_w * width_);
    const bool pairs = density_of(l.weight) > 0.15;  // below, too few are neighbours to pay for a second loop
    struct Found {
        int row;
        std::vector<Tap> paired, single;
    };
    std::vector<int> first(static_cast<std::size_t>(l.outputs), -1), last(first);
    for (int b = 0; b < blocks; ++b) {
        std::vector<Found> rows;
        for (int r = 0; r < l.outputs; ++r) {
            const int from = b * each * area, to = std::min(channels, (b + 1) * each) * area;
            const float* weight = l.weight.data() + static_cast<int64_t>(r) * taps;
            std::vector<Tap> all;
            for (int t = from; t < to; ++t) {
                if (weight[t] == 0) continue;
                const int c = t / area, ky = t % area / l.kernel_w, kx = t % l.kernel_w;
                all.push_back({weight[t], static_cast<int32_t>(c * in.channel + (ky - l.pad_h) * in.row +
                                                               (kx - l.pad_w) * width_)});
            }
            if (all.empty() && b > 0) continue;
            Found found{r, {}, {}};
            for (std::size_t i = 0; i < all.size(); ++i) {
                if (pairs && i + 1 < all.size() && all[i + 1].offset == all[i].offset + px) {
                    found.paired.push_back(all[i]);
                    found.paired.push_back(all[++i]);
                } else {
                    found.single.push_back(all[i]);
                }
            }
            rows.push_back(std::move(found));
        }
        // Loops of the same length one after the other are foreseen by the processor.
        std::stable_sort(rows.begin(), rows.end(), [](const Found& p, const Found& q) {
            return std::make_pair(p.single.size(), p.paired.size()) < std::make_pair(q.single.size(), q.paired.size());
        });
        for (const Found& found : rows) {
            const auto begin = static_cast<int32_t>(step.twos.size());
            for (std::size_t i = 0; i < found.paired.size(); i += 2)
                step.twos.push_back(two(found.paired[i], found.paired[i + 1]));
            const auto paired = static_cast<int32_t>(step.twos.size());
            for (std::size_t i = 0; i < found.single.size(); i += 2)
                step.twos.push_back(two(found.single[i], i + 1 < found.single.size()
                                                             ? found.single[i + 1]
                                                             : Tap{0.0f, found.single[i].offset}));
            auto& start = first[static_cast<std::size_t>(found.row)];
            if (start < 0) start = static_cast<int>(step.runs.size());
            last[static_cast<std::size_t>(found.row)] = static_cast<int>(step.runs.size());
            step.runs.push_back({found.row, begin, paired, static_cast<int32_t>(step.twos.size()), false, false});
        }
    }
    for (int r = 0; r < l.outputs; ++r) {
        step.runs[static_cast<std::size_t>(first[static_cast<std::size_t>(r)])].first = true;
        step.runs[static_cast<std::size_t>(last[static_cast<std::size_t>(r)])].last = true;
    }
}

// The kernels trust the offsets: the first and the last pixel that a tap reads must lie inside its slot.
void InferCompiler::check_taps(const Slot& in, const Slot& out, const InferStep& step) const {
    const InferLayer& l = *step.layer;
    const Shape made = computed(step, out);
    const int64_t rows = in.band ? in.rows : in.shape.height + in.border.top + in.border.bottom;
    const int64_t above = in.band ? l.pad_h : in.border.top;
    const int64_t reach = ((!in.band ? made.height : out.band ? out.rows : step.height) - 1) * static_cast<int64_t>(l.stride_h) * in.row +
                          static_cast<int64_t>(made.width - 1) * l.stride_w * width_ + width_;
    for (const TwoTaps& t : step.twos)
        for (const int32_t offset : t.offset) {
            const int64_t begin = offset + above * in.row + in.border.left * width_;
            if (begin < 0 || begin + reach > rows * in.row) throw std::out_of_range("a tap lies outside its input");
        }
}

void InferCompiler::spread_map(const InferPlan& plan, const Slot& out, InferStep& step) const {
    const InferLayer& l = *step.layer;
    const Shape part = computed(step, out);
    const int lanes = plan.single && (out.grid.y > 1 || out.grid.x > 1) ? width_ : 1;
    step.map_px = lanes;
    step.map_row = static_cast<ptrdiff_t>(part.width) * lanes;
    step.map_channel = step.map_row * part.height;
    step.map.assign(static_cast<std::size_t>(step.map_channel * part.channels), 0.0f);
    const int whole_h = part.height * out.grid.y, whole_w = part.width * out.grid.x;
    for (int c = 0; c < part.channels; ++c)
        for (int y = 0; y < whole_h; ++y)
            for (int x = 0; x < whole_w; ++x) {
                const int lane = y / part.height * out.grid.x + x / part.width;
                step.map[static_cast<std::size_t>(c * step.map_channel + y % part.height * step.map_row +
                                                  x % part.width * lanes + lane)] =
                    l.map[static_cast<std::size_t>((static_cast<int64_t>(c) * whole_h + y) * whole_w + x)] +
                    (l.bias.empty() ? 0.0f : l.bias[static_cast<std::size_t>(c)]);
            }
}

void InferCompiler::compile_linear(const InferPlan& plan, InferStep& step) const {
    const InferLayer& l = *step.layer;
    const int inputs = plan.slots[static_cast<std::size_t>(step.in)].shape.channels;
    // One example: a vector of dense weights costs about what one tap and a half do.
    if (plan.single && density_of(l.weight) * width_ > 1.5) {
        step.dense = true;
        return;
    }
    for (int r = 0; r < l.outputs; ++r) {
        const auto begin = static_cast<int32_t>(step.taps.size());
        for (int k = 0; k < inputs; ++k) {
            const float w = l.weight[static_cast<std::size_t>(static_cast<int64_t>(r) * inputs + k)];
            if (w != 0) step.taps.push_back({w, k});
        }
        step.rows.push_back({r, begin, static_cast<int32_t>(step.taps.size())});
    }
}

// Where the first layer alone reads the input and is linear, inputs that no weight reads are not even copied.
void InferCompiler::find_used(InferPlan& plan) const {
    int readers = 0;
    for (const InferLayer& l : layers_)
        readers += static_cast<int>(std::count(l.inputs.begin(), l.inputs.end(), 0));
    if (plan.single || readers != 1 || layers_[0].kind != "linear") return;
    plan.used.assign(static_cast<std::size_t>(shapes_[0].channels / width_ + 1), 0);
    for (const Tap& t : plan.steps[0].taps) plan.used[static_cast<std::size_t>(t.offset / width_)] = 1;
}

}  // namespace fedsparsify
