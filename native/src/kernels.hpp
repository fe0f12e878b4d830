// What every instruction set implements: integer sums of a few rows of activations with all rows
// of a weight matrix. Sums are exact, so the sets agree bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kernels {

constexpr std::size_t kMaxTokens = 4;   // rows of activations in one pass over the weights
constexpr std::size_t kWordBits = 64;   // weights of a word, and activations that are read at once

// Activations of one pass: `tokens` rows of int8, each padded with zeros to whole words.
struct Activations {
  const std::int8_t* values;
  std::size_t tokens;
  std::size_t words;  // per row
};

// A matrix of bits, or of bytes; `stride` is from row to row, in words or in bytes.
struct OneBitRows {
  const std::uint64_t* words;
  std::size_t stride;
  std::size_t rows;
};

struct Int8Rows {
  const std::int8_t* bytes;
  std::size_t stride;
  std::size_t inputs;
  std::size_t rows;
};

// sums[token * rows + row]
using OneBitSums = void (*)(const Activations&, const OneBitRows&, std::int32_t* sums);
using Int8Sums = void (*)(const Activations&, const Int8Rows&, std::int32_t* sums);

struct InstructionSet {
  const char* name;
  bool (*is_supported)();
  OneBitSums one_bit;
  Int8Sums int8;
};

extern const InstructionSet kVnni, kAvx2, kScalar;

// Round a row to int8 by its largest magnitude; returns what one step is worth. A row with an
// infinite value or a NaN becomes zeros, and its step NaN. `padded` >= `count` values are written.
float quantise_row(const float* row, std::size_t count, std::int8_t* to, std::size_t padded);

}  // namespace kernels
