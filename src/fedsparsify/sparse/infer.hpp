// A network compiled for inference alone: what is pruned is gone, and nothing is kept for training.
//
// It is compiled twice. In the batch plan the lanes are images; in the single plan they are parts of one image, or, for
// features, there are no lanes at all. Runs from several threads take separate workspaces.
#pragma once
#include <mutex>
#include <string>
#include <vector>

#include "tensor.hpp"

namespace fedsparsify {

struct InferLayer {
    std::string kind;  // conv, linear, maxpool, avgpool, combine, subsample, pad_channels, mean, flatten
    std::vector<int> inputs;
    std::vector<float> weight, bias, map, scale, shift;  // empty where absent
    int64_t kept = 0;  // of the weights; those of a layer that is not computed densely are let go of
    int outputs = 0;
    int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, before = 0;
    bool rectify = false;
};

// How one image is cut into parts, one a lane; {1, 1} where lanes are images.
struct Grid {
    int y = 1, x = 1;
    bool operator==(const Grid& o) const { return y == o.y && x == o.x; }
};

// Where a value lies in a workspace. A plane is [y][channel][x][lane] with a border; features are [feature][lanes].
struct Slot {
    Shape shape;  // of a part
    bool flat = false;
    Grid grid;
    Border border;
    ptrdiff_t channel = 0, row = 0, origin = 0;
    int64_t size = 0;
    int rows = 0;          // kept at a time; all of them where band is false
    bool band = false;
    bool unused = false;  // nothing writes it
};

struct InferStep {
    const InferLayer* layer = nullptr;  // null: change of grid
    int in = 0, more = -1, out = 0;     // slots
    std::vector<Tap> taps;      // of a linear layer
    std::vector<TapRow> rows;
    std::vector<TwoTaps> twos;  // of a convolution
    std::vector<TapRun> runs;
    std::vector<float> map;  // in the plan's layout
    ptrdiff_t map_channel = 0, map_row = 0, map_px = 0;
    int tile_rows = 1, tile_pixels = 1;
    int height = 1;  // rows made at a time
    bool dense = false;
    bool pool = false;  // a convolution that returns the largest of each 2 x 2 of its outputs
    bool exchange = false;  // borders of the input come from other lanes

    Taps view() const { return {taps.data(), rows.data(), static_cast<int>(rows.size())}; }
};

struct InferPlan {
    bool single = false;
    int vectors = 1;  // of lanes
    std::vector<Slot> slots;
    std::vector<InferStep> steps;
    std::vector<std::pair<int, int>> groups;  // steps [first, second) that run band by band where they are several
    int64_t floats = 0;
    std::vector<int64_t> place;  // of each slot
    int64_t sums = 0;            // where tiles keep theirs
    std::vector<uint8_t> used;   // runs of `width` inputs that are read; empty where all are
    double share = 1;            // of the lanes that do something
};

class InferNetwork {
public:
    InferNetwork(std::vector<InferLayer> layers, const Shape& input, bool flat, const Kernels& kernels);
    // x: float32[count][inputs], out: float32[count][outputs].
    void run(const float* x, int64_t count, float* out) const;

    int64_t inputs() const { return input_.size(); }
    int64_t outputs() const { return outputs_; }
    // Multiply-adds for one image.
    int64_t multiply_adds() const;
    int64_t workspace_bytes() const;
    std::string describe() const;

private:
    struct Workspace {
        Buffer batch[3], single;
    };
    friend class InferCompiler;
    void run_block(const InferPlan&, Buffer&, const float* x, int valid, float* out) const;

    std::vector<InferLayer> layers_;
    Shape input_;
    bool flat_;
    const Kernels& kernels_;
    std::vector<Shape> shapes_;  // of the values
    std::vector<bool> flats_;
    int64_t outputs_ = 0;
    InferPlan single_;
    std::vector<InferPlan> batch_;  // by growing numbers of vectors
    int most_single_ = 0;           // with no more images than this they go one by one
    mutable std::mutex mutex_;
    mutable std::vector<std::unique_ptr<Workspace>> free_;
};

}  // namespace fedsparsify
