// The Python module: layers that hold their weights, and run one call per batch of activations.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using kernels::Activations;
using kernels::InstructionSet;
using kernels::kMaxTokens;
using kernels::kWordBits;

using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::device::cpu>;
using Bytes = nb::ndarray<const std::int8_t, nb::ndim<2>, nb::device::cpu>;

const InstructionSet* const kAll[] = {&kernels::kVnni, &kernels::kAvx2, &kernels::kScalar};

std::vector<std::string> instruction_sets() {
  std::vector<std::string> found;
  for (const auto* each : kAll)
    if (each->is_supported()) found.emplace_back(each->name);
  return found;
}

const InstructionSet& find(const std::string& name) {
  std::string known;
  for (const auto* each : kAll) {
    if (!each->is_supported()) continue;
    if (name.empty() || name == each->name) return *each;
    known += known.empty() ? each->name : std::string(", ") + each->name;
  }
  throw nb::value_error(
      ("instruction set is '" + name + "', this processor has " + known).c_str());
}

// Scratch of a thread, which grows to the largest layer it has run.
struct Scratch {
  std::vector<std::int8_t> values;
  std::vector<std::int32_t> sums;
};
thread_local Scratch scratch;

void check(bool fits, const std::string& said) {
  if (!fits) throw nb::value_error(said.c_str());
}

// A batch of activations (tokens, inputs) and where its outputs (tokens, rows) go.
struct Batch {
  const float* x;
  std::size_t tokens, inputs;
  float* y;
};

// y = step of the row of activations * sums * scale of the row of weights, kMaxTokens at a time.
template <class Sums>
void run(const Batch& batch, const Scales& scales, Sums sums_of) {
  const std::size_t inputs = batch.inputs, rows = scales.shape(0);
  const std::size_t words = (inputs + kWordBits - 1) / kWordBits, padded = words * kWordBits;
  scratch.values.resize(kMaxTokens * padded);
  scratch.sums.resize(kMaxTokens * rows);
  for (std::size_t first = 0; first < batch.tokens; first += kMaxTokens) {
    const std::size_t tokens = std::min(kMaxTokens, batch.tokens - first);
    float steps[kMaxTokens];
    for (std::size_t token = 0; token < tokens; ++token) {
      steps[token] = kernels::quantise_row(batch.x + (first + token) * inputs, inputs,
                                           scratch.values.data() + token * padded, padded);
    }
    sums_of(Activations{scratch.values.data(), tokens, words}, scratch.sums.data());
    for (std::size_t token = 0; token < tokens; ++token) {
      const std::int32_t* sums = scratch.sums.data() + token * rows;
      float* to = batch.y + (first + token) * rows;
      for (std::size_t row = 0; row < rows; ++row)
        to[row] = static_cast<float>(sums[row]) * steps[token] * scales.data()[row];
    }
  }
}

void check_call(const Floats& x, const Output& y, std::size_t rows) {
  check(y.shape(0) == x.shape(0) && y.shape(1) == rows,
        "y has shape (" + std::to_string(y.shape(0)) + ", " + std::to_string(y.shape(1)) +
            "), expected (" + std::to_string(x.shape(0)) + ", " + std::to_string(rows) + ")");
}

class OneBitLinear {
 public:
  OneBitLinear(Words words, Scales scales, const std::string& name)
      : words_(std::move(words)), scales_(std::move(scales)), sums_(find(name).one_bit) {
    check(scales_.shape(0) == words_.shape(0), "scales and words differ in rows");
    check(words_.shape(1) == 1 || words_.stride(1) == 1, "the words of a row must lie in a run");
  }

  void call(Floats x, Output y) const {
    check_call(x, y, words_.shape(0));
    check((x.shape(1) + kWordBits - 1) / kWordBits == words_.shape(1),
          "x has " + std::to_string(x.shape(1)) + " inputs, the layer's rows " +
              std::to_string(words_.shape(1)) + " words of 64");
    run_at(reinterpret_cast<std::uintptr_t>(x.data()), x.shape(0), x.shape(1),
           reinterpret_cast<std::uintptr_t>(y.data()));
  }

  void run_at(std::uintptr_t x, std::size_t tokens, std::size_t inputs, std::uintptr_t y) const {
    nb::gil_scoped_release release;
    const kernels::OneBitRows rows{reinterpret_cast<const std::uint64_t*>(words_.data()),
                                   static_cast<std::size_t>(words_.stride(0)), words_.shape(0)};
    const Batch batch{reinterpret_cast<const float*>(x), tokens, inputs,
                      reinterpret_cast<float*>(y)};
    run(batch, scales_, [&](const Activations& a, std::int32_t* sums) { sums_(a, rows, sums); });
  }

 private:
  Words words_;
  Scales scales_;
  kernels::OneBitSums sums_;
};

class Int8Linear {
 public:
  Int8Linear(Bytes bytes, Scales scales, const std::string& name)
      : bytes_(std::move(bytes)), scales_(std::move(scales)), sums_(find(name).int8) {
    check(scales_.shape(0) == bytes_.shape(0), "scales and weights differ in rows");
    check(bytes_.shape(1) == 1 || bytes_.stride(1) == 1, "the bytes of a row must lie in a run");
  }

  void call(Floats x, Output y) const {
    check_call(x, y, bytes_.shape(0));
    check(x.shape(1) == bytes_.shape(1),
          "x has " + std::to_string(x.shape(1)) + " inputs, the layer " +
              std::to_string(bytes_.shape(1)));
    run_at(reinterpret_cast<std::uintptr_t>(x.data()), x.shape(0), x.shape(1),
           reinterpret_cast<std::uintptr_t>(y.data()));
  }

  void run_at(std::uintptr_t x, std::size_t tokens, std::size_t inputs, std::uintptr_t y) const {
    nb::gil_scoped_release release;
    const kernels::Int8Rows rows{bytes_.data(), static_cast<std::size_t>(bytes_.stride(0)),
                                 bytes_.shape(1), bytes_.shape(0)};
    const Batch batch{reinterpret_cast<const float*>(x), tokens, inputs,
                      reinterpret_cast<float*>(y)};
    run(batch, scales_, [&](const Activations& a, std::int32_t* sums) { sums_(a, rows, sums); });
  }

 private:
  Bytes bytes_;
  Scales scales_;
  kernels::Int8Sums sums_;
};

}  // namespace

const char* const kRunAt =
    "The same by addresses of contiguous float32, a tenth of the overhead; nothing is checked.";

NB_MODULE(_kernels, m) {
  m.def("instruction_sets", &instruction_sets, "Those that this processor runs, fastest first.");
  nb::class_<OneBitLinear>(m, "OneBitLinear",
                           "y = x W^T; W's rows are bits, each row times a signed scale.")
      .def(nb::init<Words, Scales, const std::string&>(), "words"_a, "scales"_a,
           "instruction_set"_a = "")
      .def("__call__", &OneBitLinear::call, "x"_a, "y"_a,
           "(T, in) float32 to (T, out), written into y. ValueError for shapes that don't fit.")
      .def("run_at", &OneBitLinear::run_at, "x"_a, "tokens"_a, "inputs"_a, "y"_a, kRunAt);
  nb::class_<Int8Linear>(m, "Int8Linear", "y = x W^T; W's rows are bytes, each row times a scale.")
      .def(nb::init<Bytes, Scales, const std::string&>(), "weights"_a, "scales"_a,
           "instruction_set"_a = "")
      .def("__call__", &Int8Linear::call, "x"_a, "y"_a,
           "(T, in) float32 to (T, out), written into y. ValueError for shapes that don't fit.")
      .def("run_at", &Int8Linear::run_at, "x"_a, "tokens"_a, "inputs"_a, "y"_a, kRunAt);
}
