#include "pattern.hpp"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

namespace fedsparsify {
namespace {

int ceil_div(int a, int b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Every offset plus the reach of a kernel must stay inside [first, last) of the tensor.
void check_inside(const std::vector<int32_t>& offsets, int64_t origin, int64_t reach, int64_t size, const char* what) {
    for (int32_t offset : offsets)
        if (origin + offset < 0 || origin + offset + reach > size)
            throw std::out_of_range(std::string("compiled mask: an index of ") + what + " lies outside its tensor");
}

struct Entry {
    int32_t row, column, offset, index;
};

// Sorts entries into column blocks of `per_block` columns, then rows, keeping column order within a row.
RowIndex index_rows(std::vector<Entry>& entries, int rows, int columns, int per_block) {
    RowIndex out;
    out.rows = rows;
    out.blocks = std::max(1, (columns + per_block - 1) / per_block);
    out.start.assign(static_cast<std::size_t>(out.blocks) * static_cast<std::size_t>(rows) + 1, 0);
    const auto bucket = [&](const Entry& e) {
        return static_cast<std::size_t>(e.column / per_block) * static_cast<std::size_t>(rows) +
               static_cast<std::size_t>(e.row);
    };
    for (const Entry& e : entries) ++out.start[bucket(e) + 1];
    std::partial_sum(out.start.begin(), out.start.end(), out.start.begin());
    std::vector<int32_t> next(out.start.begin(), out.start.end() - 1);
    std::vector<Entry> sorted(entries.size());
    for (const Entry& e : entries) sorted[static_cast<std::size_t>(next[bucket(e)]++)] = e;
    entries.swap(sorted);
    out.offset.reserve(entries.size());
    out.entry.reserve(entries.size());
    for (const Entry& e : entries) {
        out.offset.push_back(e.offset);
        out.entry.push_back(e.index);
    }
    return out;
}

// Lets every `group` entries of a row that follow each other count as columns of the last of them, so that no block
// boundary comes between them. Entries come row by row.
void keep_together(std::vector<Entry>& entries, std::size_t group) {
    for (std::size_t begin = 0, end; begin < entries.size(); begin = end) {
        for (end = begin + 1; end < std::min(entries.size(), begin + group); ++end)
            if (entries[end].row != entries[begin].row) break;
        for (std::size_t i = begin; i < end; ++i) entries[i].column = entries[end - 1].column;
    }
}

// Moves the entries of each row in each block that have a neighbour `step` floats on to its front, two by two.
void pair_up(RowIndex& rows, int32_t step) {
    for (std::size_t s = 0; s + 1 < rows.start.size(); ++s) {
        std::vector<std::pair<int32_t, int32_t>> all, single;  // offset and entry
        for (auto i = static_cast<std::size_t>(rows.start[s]); i < static_cast<std::size_t>(rows.start[s + 1]); ++i)
            all.emplace_back(rows.offset[i], rows.entry[i]);
        std::sort(all.begin(), all.end());
        std::vector<std::pair<int32_t, int32_t>> sorted;
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (i + 1 < all.size() && all[i + 1].first == all[i].first + step) {
                sorted.push_back(all[i]);
                sorted.push_back(all[++i]);
            } else {
                single.push_back(all[i]);
            }
        }
        rows.pairs.push_back(rows.start[s] + static_cast<int32_t>(sorted.size()));
        sorted.insert(sorted.end(), single.begin(), single.end());
        for (std::size_t i = 0; i < sorted.size(); ++i) {
            rows.offset[static_cast<std::size_t>(rows.start[s]) + i] = sorted[i].first;
            rows.entry[static_cast<std::size_t>(rows.start[s]) + i] = sorted[i].second;
        }
    }
}

// Columns per block such that a row has about `target` survivors in each.
int columns_for(int64_t survivors, int rows, int columns, double target, int least, int most) {
    const double per_row = static_cast<double>(survivors) / std::max(1, rows);
    const int wanted = per_row > 0 ? static_cast<int>(columns * target / per_row) + 1 : columns;
    return std::max(1, std::min(columns, std::max(least, std::min(most, wanted))));
}

// Moves every row to the next multiple of the width. Padding reads offset 0, and its value is never used.
void pad_rows(RowIndex& rows, std::vector<Entry>& entries, int width) {
    std::vector<int32_t> offset, entry, start, stop;
    std::vector<Entry> padded;
    for (std::size_t s = 0; s + 1 < rows.start.size(); ++s) {
        start.push_back(static_cast<int32_t>(offset.size()));
        for (int32_t i = rows.start[s]; i < rows.start[s + 1]; ++i) {
            offset.push_back(rows.offset[static_cast<std::size_t>(i)]);
            entry.push_back(rows.entry[static_cast<std::size_t>(i)]);
            padded.push_back(entries[static_cast<std::size_t>(i)]);
        }
        stop.push_back(static_cast<int32_t>(offset.size()));
        while (offset.size() % static_cast<std::size_t>(width) != 0) {
            offset.push_back(0);
            entry.push_back(-1);
            padded.push_back({-1, -1, 0, -1});
        }
    }
    rows.start.swap(start);
    rows.stop.swap(stop);
    rows.offset.swap(offset);
    rows.entry.swap(entry);
    entries.swap(padded);
}

}  // namespace

LinearPattern::LinearPattern(const uint8_t* mask, LinearShape s, int stride, int width, bool needs_input_gradient)
    : shape(s) {
    const int64_t reach = stride;
    std::vector<Entry> entries;
    for (int r = 0; r < s.outputs; ++r)
        for (int k = 0; k < s.inputs; ++k)
            if (mask[static_cast<int64_t>(r) * s.inputs + k]) entries.push_back({r, k, k * stride, r * s.inputs + k});
    const int per_block = columns_for(static_cast<int64_t>(entries.size()), s.outputs, s.inputs, 40, 192, s.inputs);
    forward = index_rows(entries, s.outputs, s.inputs, per_block);
    pad_rows(forward, entries, width);
    index.swap(forward.entry);
    check_inside(forward.offset, 0, reach, static_cast<int64_t>(s.inputs) * stride, "a linear layer");
    if (!needs_input_gradient) return;
    std::vector<Entry> transposed;
    for (std::size_t i = 0; i < entries.size(); ++i)
        if (const Entry& e = entries[i]; e.index >= 0)
            transposed.push_back({e.column, e.row, e.row * stride, static_cast<int32_t>(i)});
    backward = index_rows(transposed, s.inputs, s.outputs, s.outputs);
    check_inside(backward.offset, 0, reach, static_cast<int64_t>(s.outputs) * stride, "a linear layer");
}

std::vector<uint8_t> LinearPattern::used_inputs(int width) const {
    std::vector<uint8_t> used(static_cast<std::size_t>(shape.inputs / width + 1), 0);
    for (int32_t i : index)
        if (i >= 0) used[static_cast<std::size_t>(i % shape.inputs / width)] = 1;
    return used;
}

Shape ConvShape::output(const Shape& in) const {
    return {outputs, (in.height + 2 * pad_h - kernel_h) / stride_h + 1, (in.width + 2 * pad_w - kernel_w) / stride_w + 1};
}

Border ConvShape::input_border(const Shape& in) const {
    const Shape out = output(in);
    return {pad_h, pad_w, std::max(0, (out.height - 1) * stride_h + kernel_h - pad_h - in.height),
            std::max(0, (out.width - 1) * stride_w + kernel_w - pad_w - in.width)};
}

Border ConvShape::delta_border(const Shape& in) const {
    // Input pixel y is reached from output pixels (y + pad - k) / stride for 0 <= k < kernel.
    const Shape out = output(in);
    return {std::max(0, -ceil_div(pad_h - kernel_h + 1, stride_h)),
            std::max(0, -ceil_div(pad_w - kernel_w + 1, stride_w)),
            std::max(0, floor_div(in.height - 1 + pad_h, stride_h) - (out.height - 1)),
            std::max(0, floor_div(in.width - 1 + pad_w, stride_w) - (out.width - 1))};
}

std::vector<int32_t> forward_taps(const ConvShape& s, const Tensor& in) {
    std::vector<int32_t> taps;
    for (int c = 0; c < s.inputs; ++c)
        for (int ky = 0; ky < s.kernel_h; ++ky)
            for (int kx = 0; kx < s.kernel_w; ++kx)
                taps.push_back(static_cast<int32_t>(c * in.channel + (ky - s.pad_h) * in.row + (kx - s.pad_w) * in.px));
    const Shape out = s.output(in.shape);
    const int64_t reach =
        (out.height - 1) * s.stride_h * in.row + (out.width - 1) * s.stride_w * in.px + in.px;
    check_inside(taps, in.origin, reach, in.block, "a convolution");
    return taps;
}

int phase_extent(int size, int phase, int stride) { return size > phase ? (size - phase + stride - 1) / stride : 0; }

std::vector<PhaseTap> phase_taps(const ConvShape& s, const Tensor& delta, int phase_y, int phase_x) {
    std::vector<PhaseTap> taps;
    for (int o = 0; o < s.outputs; ++o)
        for (int ky = 0; ky < s.kernel_h; ++ky)
            for (int kx = 0; kx < s.kernel_w; ++kx) {
                const int y = phase_y + s.pad_h - ky, x = phase_x + s.pad_w - kx;
                if (y % s.stride_h != 0 || x % s.stride_w != 0) continue;
                taps.push_back({o, ky, kx,
                                static_cast<int32_t>(o * delta.channel + (y / s.stride_h) * delta.row +
                                                     (x / s.stride_w) * delta.px)});
            }
    return taps;
}

ConvPattern::ConvPattern(const uint8_t* mask, const ConvShape& s, const Tensor& in, const Tensor* delta, int width)
    : shape(s) {
    const int area = s.kernel_h * s.kernel_w;
    const std::vector<int32_t> taps = forward_taps(s, in);
    std::vector<Entry> entries;
    for (int r = 0; r < s.outputs; ++r)
        for (int t = 0; t < s.taps(); ++t) {
            const int i = r * s.taps() + t;
            if (mask[i]) entries.push_back({r, t / area, taps[static_cast<std::size_t>(t)], i});
        }
    const auto survivors = static_cast<int64_t>(entries.size());
    const std::vector<Entry> by_weight = entries;

    // A tile reads (pixels + kernel - 1) pixels of kernel rows of each input channel; the first-level cache holds about
    // 20 KiB of them beside outputs and weights: with less the rows are cut into too many pieces, with more they miss.
    const int pixels = most_pixels(width);
    const int tile = (pixels * s.stride_w + s.kernel_w - 1) * s.kernel_h * width * 4;
    forward = index_rows(entries, s.outputs, s.inputs,
                         columns_for(survivors, s.outputs, s.inputs, 24, 20480 / tile, s.inputs));
    pair_up(forward, static_cast<int32_t>(s.stride_w * in.px));
    index.swap(forward.entry);
    std::vector<int32_t> place(static_cast<std::size_t>(s.outputs) * static_cast<std::size_t>(s.taps()), -1);
    for (std::size_t i = 0; i < index.size(); ++i) place[static_cast<std::size_t>(index[i])] = static_cast<int32_t>(i);

    const Shape out = s.output(in.shape);
    const int box_w = out.width < box_pixels ? out.width : box_pixels / 2, box_h = box_pixels / box_w;
    const int box = (box_w * s.stride_w + s.kernel_w - 1) * (box_h * s.stride_h + s.kernel_h - 1) * width * 4;
    entries = by_weight;
    keep_together(entries, value_group);
    gradient = index_rows(entries, s.outputs, s.inputs,
                          columns_for(survivors, s.outputs, s.inputs, 12, 24576 / box, s.inputs));
    pair_up(gradient, static_cast<int32_t>(s.stride_w * in.px));
    for (int32_t& e : gradient.entry) e = place[static_cast<std::size_t>(e)];

    if (!delta) return;
    for (int py = 0; py < s.stride_h; ++py)
        for (int px = 0; px < s.stride_w; ++px) {
            Phase phase;
            phase.y = py;
            phase.x = px;
            phase.height = phase_extent(in.shape.height, py, s.stride_h);
            phase.width = phase_extent(in.shape.width, px, s.stride_w);
            if (phase.height == 0 || phase.width == 0) continue;
            std::vector<Entry> transposed;
            for (const PhaseTap& t : phase_taps(s, *delta, py, px))
                for (int c = 0; c < s.inputs; ++c) {
                    const int32_t p = place[static_cast<std::size_t>(
                        ((t.output * s.inputs + c) * s.kernel_h + t.ky) * s.kernel_w + t.kx)];
                    if (p >= 0) transposed.push_back({c, t.output, t.offset, p});
                }
            const int delta_tile = (pixels + s.kernel_w - 1) * s.kernel_h * width * 4;
            phase.rows = index_rows(transposed, s.inputs, s.outputs,
                                    columns_for(survivors, s.inputs, s.outputs, 24, 20480 / delta_tile, s.outputs));
            pair_up(phase.rows, static_cast<int32_t>(delta->px));
            check_inside(phase.rows.offset, delta->origin,
                         (phase.height - 1) * delta->row + (phase.width - 1) * delta->px + delta->px, delta->block,
                         "a convolution's gradient");
            phases.push_back(std::move(phase));
        }
}

}  // namespace fedsparsify
