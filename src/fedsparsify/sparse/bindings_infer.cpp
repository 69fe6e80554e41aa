// fedsparsify.sparse._native.InferNetwork: the compiled network of infer.hpp, with every array checked on its way in.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.hpp"
#include "infer.hpp"

namespace py = pybind11;

namespace fedsparsify {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

std::vector<float> floats(const py::dict& d, const char* name) {
    if (!d.contains(name) || d[name].is_none()) return {};
    const auto array = d[name].cast<Floats>();
    return {array.data(), array.data() + array.size()};
}

InferLayer layer_of(const py::dict& d) {
    const auto pair = [&](const char* name, std::pair<int, int> otherwise) {
        return d.contains(name) ? d[name].cast<std::pair<int, int>>() : otherwise;
    };
    const auto number = [&](const char* name) { return d.contains(name) ? d[name].cast<int>() : 0; };
    InferLayer l;
    l.kind = d["kind"].cast<std::string>();
    l.inputs = d["inputs"].cast<std::vector<int>>();
    l.weight = floats(d, "weight");
    l.bias = floats(d, "bias");
    l.map = floats(d, "map");
    l.scale = floats(d, "scale");
    l.shift = floats(d, "shift");
    l.outputs = number("outputs");
    std::tie(l.kernel_h, l.kernel_w) = pair("kernel", {1, 1});
    std::tie(l.stride_h, l.stride_w) = pair("stride", {1, 1});
    std::tie(l.pad_h, l.pad_w) = pair("padding", {0, 0});
    l.before = number("before");
    l.rectify = number("rectify") != 0;
    return l;
}

std::unique_ptr<InferNetwork> make(const py::list& layers, const std::vector<int>& input, const std::string& target) {
    const Kernels* kernels = find_kernels(target.c_str());
    if (!kernels) throw std::invalid_argument("this processor or build has no '" + target + "' kernels");
    if (input.size() != 1 && input.size() != 3) throw std::invalid_argument("the input must have one or three dimensions");
    const bool flat = input.size() == 1;
    const Shape shape{input[0], flat ? 1 : input[1], flat ? 1 : input[2]};
    std::vector<InferLayer> list;
    for (const py::handle& item : layers) list.push_back(layer_of(py::reinterpret_borrow<py::dict>(item)));
    const py::gil_scoped_release release;
    return std::make_unique<InferNetwork>(std::move(list), shape, flat, *kernels);
}

Floats run(const InferNetwork& network, const Floats& x) {
    if (x.ndim() < 1 || x.size() != x.shape(0) * network.inputs())
        throw std::invalid_argument("x has a wrong number of elements");
    Floats out({x.shape(0), static_cast<py::ssize_t>(network.outputs())});
    const float* from = x.data();
    float* to = out.mutable_data();
    const auto count = static_cast<int64_t>(x.shape(0));
    const py::gil_scoped_release release;
    network.run(from, count, to);
    return out;
}

}  // namespace

void bind_inference(py::module_& m) {
    py::class_<InferNetwork>(m, "InferNetwork")
        .def(py::init(&make), py::arg("layers"), py::arg("input"), py::arg("target"))
        .def("run", &run, py::arg("x").noconvert())
        .def("outputs", &InferNetwork::outputs)
        .def("multiply_adds", &InferNetwork::multiply_adds)
        .def("workspace_bytes", &InferNetwork::workspace_bytes)
        .def("describe", &InferNetwork::describe);
}

}  // namespace fedsparsify
