// What turns layers into the steps of a plan.
#pragma once
#include "infer.hpp"

namespace fedsparsify {

// Shapes of all values, the input's first; throws where a layer does not fit.
std::vector<Shape> infer_shapes(const std::vector<InferLayer>& layers, const Shape& input, bool flat,
                                std::vector<bool>& flats);

class InferCompiler {
public:
    InferCompiler(const std::vector<InferLayer>& layers, const std::vector<Shape>& shapes,
                  const std::vector<bool>& flats, int width);
    InferPlan compile(bool single, int vectors) const;

private:
    // Pixels of a tile that stay in the first-level cache beside weights and sums.
    static constexpr int cache_bytes = 28672;

    Grid grid_of(const InferLayer&, const Shape& in, const Shape& out) const;
    int add_plane(InferPlan&, const Shape& whole, const Grid&) const;
    int add_flat(InferPlan&, int features) const;
    int in_grid(InferPlan&, std::vector<std::vector<int>>& held, int value, const Grid&) const;
    void fuse_pools(InferPlan&) const;
    void group(InferPlan&) const;
    void lay_out(InferPlan&) const;
    void compile_conv(const InferPlan&, InferStep&) const;
    void choose_tile(const Slot& out, InferStep&) const;
    void find_taps(const Slot& in, InferStep&) const;
    void check_taps(const Slot& in, const Slot& out, const InferStep&) const;
    void spread_map(const InferPlan&, const Slot& out, InferStep&) const;
    void compile_linear(const InferPlan&, InferStep&) const;
    void find_used(InferPlan&) const;

    const std::vector<InferLayer>& layers_;
    const std::vector<Shape>& shapes_;
    const std::vector<bool>& flats_;
    int width_;
};

}  // namespace fedsparsify
