// The Python module fedsparsify.sparse._native. Shapes, types and ranges are checked here once more, so that no call
// from Python can read or write outside an array; the messages for users are made by the Python layer above.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>

#include "bindings.hpp"
#include "network.hpp"
#include "operators.hpp"

namespace py = pybind11;
using namespace fedsparsify;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Bools = py::array_t<bool, py::array::c_style>;
using Ints = py::array_t<int64_t, py::array::c_style>;

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

const Kernels& kernels_named(const std::string& name) {
    const Kernels* kernels = find_kernels(name.c_str());
    if (!kernels) refuse("this processor or build has no '" + name + "' kernels");
    return *kernels;
}

const uint8_t* bytes(const Bools& mask) { return reinterpret_cast<const uint8_t*>(mask.data()); }

int dimension(py::ssize_t value) {
    if (value < 1 || value > std::numeric_limits<int32_t>::max()) refuse("a dimension is out of range");
    return static_cast<int>(value);
}

void check_size(const py::array& array, int64_t size, const char* what) {
    if (array.size() != size)
        refuse(std::string(what) + " has " + std::to_string(array.size()) + " elements, expected " +
               std::to_string(size));
}

// Number of examples in an array [count, ...] whose rows have `row` elements.
int64_t rows_of(const py::array& array, int64_t row, const char* what) {
    if (array.ndim() < 1) refuse(std::string(what) + " must have at least one dimension");
    check_size(array, array.shape(0) * row, what);
    return array.shape(0);
}

template <class T>
T field(const py::dict& d, const char* name, T fallback) {
    return d.contains(name) ? d[name].cast<T>() : fallback;
}

NetworkSpec network_spec(const py::list& layers, const std::vector<int>& input, bool squared_error,
                         const std::vector<std::string>& backends) {
    NetworkSpec spec;
    spec.squared_error = squared_error;
    if (input.size() == 1) {
        spec.input = {input[0], 1, 1};
        spec.flat_input = true;
    } else if (input.size() == 3) {
        spec.input = {input[0], input[1], input[2]};
    } else {
        refuse("plan: the input must have one or three dimensions");
    }
    std::size_t weighted = 0;
    for (const py::handle& item : layers) {
        const auto d = py::reinterpret_borrow<py::dict>(item);
        LayerSpec l;
        l.kind = d["kind"].cast<std::string>();
        l.weight = field<int64_t>(d, "weight", -1);
        l.bias = field<int64_t>(d, "bias", -1);
        l.running_mean = field<int64_t>(d, "running_mean", -1);
        l.running_var = field<int64_t>(d, "running_var", -1);
        l.outputs = field<int>(d, "outputs", 0);
        const auto kernel = field<std::pair<int, int>>(d, "kernel", {1, 1});
        const auto stride = field<std::pair<int, int>>(d, "stride", {1, 1});
        const auto padding = field<std::pair<int, int>>(d, "padding", {0, 0});
        l.kernel_h = kernel.first, l.kernel_w = kernel.second;
        l.stride_h = stride.first, l.stride_w = stride.second;
        l.pad_h = padding.first, l.pad_w = padding.second;
        l.eps = field<float>(d, "eps", 1e-5f);
        l.momentum = field<float>(d, "momentum", 0.1f);
        l.rate = field<float>(d, "rate", 0.0f);
        if (l.kind == "linear" || l.kind == "conv2d") {
            if (weighted >= backends.size()) refuse("plan: a backend is missing");
            l.backend = backends[weighted++];
        }
        spec.layers.push_back(l);
    }
    return spec;
}

std::unique_ptr<Network> make_network(const py::list& layers, const std::vector<int>& input, bool squared_error,
                                      const std::vector<std::string>& backends, const Floats& w, const Bools& mask,
                                      const Floats& buffers, const Settings& settings, const std::string& target) {
    check_size(mask, w.size(), "mask");
    if (settings.batch_size < 1 || settings.batch_size > (1 << 20)) refuse("batch_size is out of range");
    const NetworkSpec spec = network_spec(layers, input, squared_error, backends);
    const Kernels& kernels = kernels_named(target);
    const float* weights = w.data();
    const uint8_t* kept = bytes(mask);
    const float* state = buffers.data();
    const int64_t n = w.size(), b = buffers.size();
    const py::gil_scoped_release release;
    return std::make_unique<Network>(spec, kernels, settings, weights, kept, n, state, b);
}

double epoch(Network& network, const Floats& x, const std::optional<Ints>& order, const std::optional<Ints>& labels,
             const std::optional<Floats>& targets) {
    const int64_t rows = rows_of(x, network.input_size(), "x");
    if (labels.has_value() == targets.has_value()) refuse("give either labels or targets");
    if (labels) {
        check_size(*labels, rows, "labels");
        for (int64_t i = 0; i < rows; ++i)
            if (labels->data()[i] < 0 || labels->data()[i] >= network.outputs())
                refuse("a label is outside the network's outputs");
    }
    if (targets) check_size(*targets, rows * network.outputs(), "targets");
    int64_t count = rows;
    if (order) {
        count = order->size();
        for (int64_t i = 0; i < count; ++i)
            if (order->data()[i] < 0 || order->data()[i] >= rows) refuse("an index of order is outside x");
    }
    if (count < 1) refuse("no examples");
    const float* data = x.data();
    const int64_t* order_data = order ? order->data() : nullptr;
    const int64_t* label_data = labels ? labels->data() : nullptr;
    const float* target_data = targets ? targets->data() : nullptr;
    const py::gil_scoped_release release;
    return network.epoch(data, order_data, count, label_data, target_data);
}

Floats predict(const py::list& layers, const std::vector<int>& input, const std::vector<std::string>& backends,
               const Floats& w, const Bools& mask, const Floats& buffers, const Floats& x, int batch_size,
               const std::string& target) {
    Settings settings;
    settings.batch_size = batch_size;
    settings.training = false;
    const auto network = make_network(layers, input, false, backends, w, mask, buffers, settings, target);
    const int64_t rows = rows_of(x, network->input_size(), "x");
    Floats out({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(network->outputs())});
    const float* data = x.data();
    float* to = out.mutable_data();
    const py::gil_scoped_release release;
    network->predict(data, rows, to);
    return out;
}

template <class Operator>
const float* checked_values(const Operator& op, const Floats& values) {
    check_size(values, op.entries(), "values");
    return values.data();
}

template <class Operator>
Floats run_forward(const Operator& op, const Floats& values, const std::optional<Floats>& bias, const Floats& x,
                   int64_t in, std::vector<py::ssize_t> out_shape) {
    const int64_t rows = rows_of(x, in, "x");
    if (bias) check_size(*bias, op.shape.outputs, "bias");
    out_shape.insert(out_shape.begin(), static_cast<py::ssize_t>(rows));
    Floats y(out_shape);
    const float *v = checked_values(op, values), *b = bias ? bias->data() : nullptr, *data = x.data();
    float* to = y.mutable_data();
    const py::gil_scoped_release release;
    op.forward(v, b, data, rows, to);
    return y;
}

template <class Operator>
Floats run_input_gradient(const Operator& op, const Floats& values, const Floats& dy, int64_t out,
                          std::vector<py::ssize_t> in_shape) {
    const int64_t rows = rows_of(dy, out, "dy");
    in_shape.insert(in_shape.begin(), static_cast<py::ssize_t>(rows));
    Floats dx(in_shape);
    const float *v = checked_values(op, values), *data = dy.data();
    float* to = dx.mutable_data();
    const py::gil_scoped_release release;
    op.input_gradient(v, data, rows, to);
    return dx;
}

template <class Operator>
Floats run_value_gradient(const Operator& op, const Floats& x, const Floats& dy, int64_t in, int64_t out) {
    const int64_t rows = rows_of(x, in, "x");
    if (rows_of(dy, out, "dy") != rows) refuse("x and dy have different numbers of examples");
    Floats gradient(static_cast<py::ssize_t>(op.entries()));
    const float *a = x.data(), *b = dy.data();
    float* to = gradient.mutable_data();
    const py::gil_scoped_release release;
    op.value_gradient(a, b, rows, to);
    return gradient;
}

std::vector<py::ssize_t> dims(const Shape& s) { return {s.channels, s.height, s.width}; }

// Multiply-adds and bytes read from memory, per second, of one thread; the best of several short runs.
std::pair<double, double> peak(const std::string& target) {
    const Kernels& kernels = kernels_named(target);
    const py::gil_scoped_release release;
    using Clock = std::chrono::steady_clock;
    constexpr int64_t rounds = 100000, size = int64_t{1} << 24;  // 64 MiB, beyond the caches of most processors
    const Buffer data(static_cast<std::size_t>(size));
    double rate = 0, bandwidth = 0;
    volatile float sink = 0;
    for (int i = 0; i < 8; ++i) {
        auto start = Clock::now();
        sink = sink + kernels.multiply_adds(rounds);
        rate = std::max(rate, 96.0 * rounds * kernels.width / std::chrono::duration<double>(Clock::now() - start).count());
        start = Clock::now();
        sink = sink + kernels.read_all(data.data(), size);
        bandwidth = std::max(bandwidth, 4.0 * size / std::chrono::duration<double>(Clock::now() - start).count());
    }
    return {rate, bandwidth};
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Sparse CPU kernels and the compiled local trainer.";
    m.attr("version") = 3;
    m.def("targets", [] {
        std::vector<std::string> names;
        for (const char* name : {"avx512", "avx2", "portable"})
            if (find_kernels(name)) names.emplace_back(name);
        return names;
    });

    m.def("peak", &peak, py::arg("target"));
    bind_inference(m);

    py::class_<Network>(m, "Trainer")
        .def(py::init([](const py::list& layers, const std::vector<int>& input, bool squared_error,
                         const std::vector<std::string>& backends, const Floats& w, const Bools& mask,
                         const Floats& buffers, float lr, float momentum, bool nesterov, float weight_decay,
                         float proximal, int batch_size, uint64_t seed, const std::string& target) {
                 const Settings settings{lr, momentum, weight_decay, proximal, nesterov, batch_size, seed, true};
                 return make_network(layers, input, squared_error, backends, w, mask, buffers, settings, target);
             }),
             py::arg("layers"), py::arg("input"), py::arg("squared_error"), py::arg("backends"),
             py::arg("w").noconvert(), py::arg("mask").noconvert(), py::arg("buffers").noconvert(), py::arg("lr"),
             py::arg("momentum"), py::arg("nesterov"), py::arg("weight_decay"), py::arg("proximal"),
             py::arg("batch_size"), py::arg("seed"), py::arg("target"))
        .def("epoch", &epoch, py::arg("x").noconvert(), py::arg("order").noconvert(), py::arg("labels").noconvert(),
             py::arg("targets").noconvert())
        .def("weights", [](const Network& network, Floats out) {
            check_size(out, network.parameters(), "out");
            float* to = out.mutable_data();
            const py::gil_scoped_release release;
            network.weights(to);
        }, py::arg("out").noconvert())
        .def("buffers", [](const Network& network, Floats out) {
            check_size(out, network.buffer_count(), "out");
            float* to = out.mutable_data();
            const py::gil_scoped_release release;
            network.buffers(to);
        }, py::arg("out").noconvert())
        .def("backends", &Network::backends)
        .def("outputs", &Network::outputs);

    m.def("predict", &predict, py::arg("layers"), py::arg("input"), py::arg("backends"), py::arg("w").noconvert(),
          py::arg("mask").noconvert(), py::arg("buffers").noconvert(), py::arg("x").noconvert(),
          py::arg("batch_size"), py::arg("target"));

    py::class_<LinearOperator>(m, "LinearOperator")
        .def(py::init([](const Bools& mask, const std::string& target) {
                 if (mask.ndim() != 2) refuse("the mask of a linear layer must have two dimensions");
                 const LinearShape shape{dimension(mask.shape(0)), dimension(mask.shape(1))};
                 if (mask.size() > std::numeric_limits<int32_t>::max()) refuse("the mask is too large");
                 return std::make_unique<LinearOperator>(bytes(mask), shape, kernels_named(target));
             }),
             py::arg("mask").noconvert(), py::arg("target") = "")
        .def("forward", [](const LinearOperator& op, const Floats& values, const std::optional<Floats>& bias,
                           const Floats& x) {
            return run_forward(op, values, bias, x, op.shape.inputs, {op.shape.outputs});
        })
        .def("input_gradient", [](const LinearOperator& op, const Floats& values, const Floats& dy) {
            return run_input_gradient(op, values, dy, op.shape.outputs, {op.shape.inputs});
        })
        .def("value_gradient", [](const LinearOperator& op, const Floats& x, const Floats& dy) {
            return run_value_gradient(op, x, dy, op.shape.inputs, op.shape.outputs);
        });

    py::class_<ConvOperator>(m, "ConvOperator")
        .def(py::init([](const Bools& mask, std::pair<int, int> stride, std::pair<int, int> padding,
                         std::tuple<int, int, int> input, const std::string& target) {
                 if (mask.ndim() != 4) refuse("the mask of a convolution must have four dimensions");
                 if (mask.size() > std::numeric_limits<int32_t>::max()) refuse("the mask is too large");
                 const ConvShape shape{dimension(mask.shape(0)), dimension(mask.shape(1)), dimension(mask.shape(2)),
                                       dimension(mask.shape(3)), dimension(stride.first), dimension(stride.second),
                                       padding.first, padding.second};
                 const Shape in{std::get<0>(input), std::get<1>(input), std::get<2>(input)};
                 if (padding.first < 0 || padding.second < 0) refuse("the padding must not be negative");
                 if (in.channels != shape.inputs) refuse("the input's channels differ from the mask's");
                 if (dimension(in.height) + 2 * padding.first < shape.kernel_h ||
                     dimension(in.width) + 2 * padding.second < shape.kernel_w)
                     refuse("the kernel is larger than its input");
                 return std::make_unique<ConvOperator>(bytes(mask), shape, in, kernels_named(target));
             }),
             py::arg("mask").noconvert(), py::arg("stride"), py::arg("padding"), py::arg("input"),
             py::arg("target") = "")
        .def("forward", [](const ConvOperator& op, const Floats& values, const std::optional<Floats>& bias,
                           const Floats& x) { return run_forward(op, values, bias, x, op.input.size(), dims(op.output)); })
        .def("input_gradient", [](const ConvOperator& op, const Floats& values, const Floats& dy) {
            return run_input_gradient(op, values, dy, op.output.size(), dims(op.input));
        })
        .def("value_gradient", [](const ConvOperator& op, const Floats& x, const Floats& dy) {
            return run_value_gradient(op, x, dy, op.input.size(), op.output.size());
        });
}
