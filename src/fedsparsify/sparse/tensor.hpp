// Aligned storage and the two activation layouts.
#pragma once
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.hpp"

namespace fedsparsify {

constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

// Zero-filled floats, aligned for every target.
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(std::size_t size) : size_(size) {
        constexpr std::size_t huge = std::size_t{1} << 21;
        if (size > std::numeric_limits<std::size_t>::max() / 8) throw std::bad_alloc();
        const std::size_t bytes = size * sizeof(float) + 64;
        const std::size_t align = bytes >= huge ? huge : 64;
        const std::size_t rounded = (bytes + align - 1) / align * align;
        data_.reset(static_cast<float*>(std::aligned_alloc(align, rounded)));
        if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        // A tile of a convolution touches one short run in each channel: with 4 KiB pages that is a page per run.
        if (align == huge) madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
        std::memset(data_.get(), 0, rounded);
    }
    float* data() const { return data_.get(); }
    std::size_t size() const { return size_; }

private:
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    std::unique_ptr<float, Free> data_;
    std::size_t size_ = 0;
};

struct Shape {
    int channels = 0, height = 1, width = 1;
    int64_t size() const { return static_cast<int64_t>(channels) * height * width; }
};

struct Border {
    int top = 0, left = 0, bottom = 0, right = 0;
    void widen(const Border& o) {
        top = top > o.top ? top : o.top;
        left = left > o.left ? left : o.left;
        bottom = bottom > o.bottom ? bottom : o.bottom;
        right = right > o.right ? right : o.right;
    }
};

// Image rows a multiple of 4 KiB apart would share their sets in the first-level cache: a third more spreads three.
constexpr int64_t spread_row(int64_t floats, int width) {
    while (floats % 1024 < 320 || floats % 1024 > 704 || (floats % 1024 > 384 && floats % 1024 < 640)) floats += width;
    return floats;
}

// An activation or its gradient for `blocks` blocks of lanes.
class Tensor {
public:
    // [block][y][channel][x][lane]: the channels of one image row lie together, which keeps a convolution's tile on
    // few pages.
    static Tensor plane(const Shape& shape, const Border& border, int blocks, int width) {
        Tensor t;
        t.shape = shape;
        t.blocks = blocks;
        const int64_t row_px = shape.width + border.left + border.right;
        const int64_t rows = shape.height + border.top + border.bottom;
        const int64_t row = spread_row(row_px * width * shape.channels, width);
        const int64_t block = rows * row;
        if (block > std::numeric_limits<int32_t>::max())
            throw std::invalid_argument("an activation of one block of examples exceeds 2^31 values");
        t.px = width;
        t.channel = row_px * width;
        t.row = row;
        t.block = block;
        t.origin = border.top * t.row + border.left * t.px;
        t.storage = Buffer(static_cast<std::size_t>(block) * static_cast<std::size_t>(blocks));
        return t;
    }
    // [feature][lane]
    static Tensor features(int count, int blocks, int width) {
        Tensor t;
        t.shape = {count, 1, 1};
        t.blocks = blocks;
        t.flat = true;
        t.block = width;
        t.channel = static_cast<ptrdiff_t>(blocks) * width;
        if (t.channel * count > std::numeric_limits<int32_t>::max())
            throw std::invalid_argument("an activation exceeds 2^31 values; use a smaller batch");
        t.storage = Buffer(static_cast<std::size_t>(t.channel * count));
        return t;
    }
    View view() const {
        return {data(), block, channel, row, px, blocks, shape.channels, shape.height, shape.width};
    }
    float* data() const { return storage.data() + origin; }
    float* at(int b) const { return data() + block_of(b) * block; }
    // A kernel's hint: it needs the pixels from (y * stride_h + dy, x * stride_w + dx) on, `more` beside the one at x.
    Ahead ahead(int b, int dy, int dx, int more, int stride_h = 1, int stride_w = 1) const {
        return {at(b) + dy * row + dx * px, channel, stride_h * row, stride_w * px, more * px, shape.channels};
    }
    // Gradients that are used up block by block keep a single block.
    int block_of(int b) const { return blocks == 1 ? 0 : b; }

    Shape shape;
    ptrdiff_t block = 0, channel = 0, row = 0, px = 0, origin = 0;
    int blocks = 0;
    bool flat = false;
    Buffer storage;
};

}  // namespace fedsparsify
