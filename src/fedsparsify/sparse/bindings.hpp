// The parts of the Python module that have a file of their own.
#pragma once
#include <pybind11/pybind11.h>

namespace fedsparsify {

void bind_inference(pybind11::module_& m);

}  // namespace fedsparsify
