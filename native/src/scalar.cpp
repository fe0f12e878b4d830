// Plain C++: what every processor runs, and what the others are held equal to.
#include "kernels.hpp"

namespace kernels {

namespace {

void one_bit_sums(const Activations& x, const OneBitRows& w, std::int32_t* sums) {
  for (std::size_t row = 0; row < w.rows; ++row) {
    const std::uint64_t* words = w.words + row * w.stride;
    for (std::size_t token = 0; token < x.tokens; ++token) {
      const std::int8_t* values = x.values + token * x.words * kWordBits;
      std::int32_t sum = 0;
      for (std::size_t j = 0; j < x.words; ++j) {
        const std::uint64_t word = words[j];
        for (std::size_t i = 0; i < kWordBits; ++i) {
          sum += static_cast<std::int32_t>((word >> i) & 1u) * values[j * kWordBits + i];
        }
      }
      sums[token * w.rows + row] = sum;
    }
  }
}

void int8_sums(const Activations& x, const Int8Rows& w, std::int32_t* sums) {
  for (std::size_t row = 0; row < w.rows; ++row) {
    const std::int8_t* bytes = w.bytes + row * w.stride;
    for (std::size_t token = 0; token < x.tokens; ++token) {
      const std::int8_t* values = x.values + token * x.words * kWordBits;
      std::int32_t sum = 0;
      for (std::size_t i = 0; i < w.inputs; ++i) {
        sum += static_cast<std::int32_t>(bytes[i]) * values[i];
      }
      sums[token * w.rows + row] = sum;
    }
  }
}

bool is_supported() { return true; }

}  // namespace

const InstructionSet kScalar = {"scalar", is_supported, one_bit_sums, int8_sums};

}  // namespace kernels
