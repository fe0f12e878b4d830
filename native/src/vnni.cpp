// AVX-512 with VNNI: a word of bits is a mask, which makes bytes of 0 and 1 out of a register of
// ones; VPDPBUSD multiplies these with 64 activations and adds up in 32 bits, all in one.
//
// Several rows of weights share each load of activations, and their sums are independent, so the
// multiplier is never waited for.
#include "kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

namespace kernels {

namespace {

template <std::size_t Rows, std::size_t Tokens>
VNNI inline void block(const Activations& x, const OneBitRows& w, std::size_t row,
                       std::int32_t* sums) {
  const __m512i one = _mm512_set1_epi8(1);
  const std::uint64_t* words = w.words + row * w.stride;
  __m512i acc[Rows][Tokens];
  for (auto& each : acc)
    for (auto& sum : each) sum = _mm512_setzero_si512();
  for (std::size_t j = 0; j < x.words; ++j) {
    __m512i values[Tokens];
    for (std::size_t token = 0; token < Tokens; ++token)
      values[token] = _mm512_loadu_si512(x.values + (token * x.words + j) * kWordBits);
    for (std::size_t r = 0; r < Rows; ++r) {
      const __m512i bits = _mm512_maskz_mov_epi8(words[r * w.stride + j], one);
      for (std::size_t token = 0; token < Tokens; ++token)
        acc[r][token] = _mm512_dpbusd_epi32(acc[r][token], bits, values[token]);
    }
  }
  for (std::size_t token = 0; token < Tokens; ++token)
    for (std::size_t r = 0; r < Rows; ++r)
      sums[token * w.rows + row + r] = _mm512_reduce_add_epi32(acc[r][token]);
}

template <std::size_t Rows, std::size_t Tokens>
VNNI void one_bit_of(const Activations& x, const OneBitRows& w, std::int32_t* sums) {
  std::size_t row = 0;
  for (; row + Rows <= w.rows; row += Rows) block<Rows, Tokens>(x, w, row, sums);
  for (; row < w.rows; ++row) block<1, Tokens>(x, w, row, sums);
}

VNNI void one_bit_sums(const Activations& x, const OneBitRows& w, std::int32_t* sums) {
  switch (x.tokens) {
    case 1: return one_bit_of<8, 1>(x, w, sums);
    case 2: return one_bit_of<8, 2>(x, w, sums);
    case 3: return one_bit_of<4, 3>(x, w, sums);
    default: return one_bit_of<4, 4>(x, w, sums);
  }
}

// Activations are made unsigned by adding 128 and the weights' sum, 128 times, is taken off again.
template <std::size_t Rows, std::size_t Tokens>
VNNI inline void int8_block(const Activations& x, const Int8Rows& w, std::size_t row,
                            std::int32_t* sums) {
  const __m512i shift = _mm512_set1_epi8(static_cast<char>(0x80)), one = _mm512_set1_epi8(1);
  const std::int8_t* bytes = w.bytes + row * w.stride;
  __m512i acc[Rows][Tokens], weights_sum[Rows];
  for (auto& each : acc)
    for (auto& sum : each) sum = _mm512_setzero_si512();
  for (auto& each : weights_sum) each = _mm512_setzero_si512();
  for (std::size_t i = 0; i < w.inputs; i += kWordBits) {
    const std::size_t left = w.inputs - i;
    const __mmask64 mask = left >= kWordBits ? ~0ull : (1ull << left) - 1;
    __m512i values[Tokens];
    for (std::size_t token = 0; token < Tokens; ++token)
      values[token] = _mm512_xor_si512(
          _mm512_loadu_si512(x.values + token * x.words * kWordBits + i), shift);
    for (std::size_t r = 0; r < Rows; ++r) {
      const __m512i part = _mm512_maskz_loadu_epi8(mask, bytes + r * w.stride + i);
      weights_sum[r] = _mm512_dpbusd_epi32(weights_sum[r], one, part);
      for (std::size_t token = 0; token < Tokens; ++token)
        acc[r][token] = _mm512_dpbusd_epi32(acc[r][token], values[token], part);
    }
  }
  for (std::size_t r = 0; r < Rows; ++r) {
    const std::int32_t offset = 128 * _mm512_reduce_add_epi32(weights_sum[r]);
    for (std::size_t token = 0; token < Tokens; ++token)
      sums[token * w.rows + row + r] = _mm512_reduce_add_epi32(acc[r][token]) - offset;
  }
}

template <std::size_t Tokens>
VNNI void int8_of(const Activations& x, const Int8Rows& w, std::int32_t* sums) {
  constexpr std::size_t rows = 4;
  std::size_t row = 0;
  for (; row + rows <= w.rows; row += rows) int8_block<rows, Tokens>(x, w, row, sums);
  for (; row < w.rows; ++row) int8_block<1, Tokens>(x, w, row, sums);
}

VNNI void int8_sums(const Activations& x, const Int8Rows& w, std::int32_t* sums) {
  switch (x.tokens) {
    case 1: return int8_of<1>(x, w, sums);
    case 2: return int8_of<2>(x, w, sums);
    case 3: return int8_of<3>(x, w, sums);
    default: return int8_of<4>(x, w, sums);
  }
}

bool is_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const InstructionSet kVnni = {"avx512_vnni", is_supported, one_bit_sums, int8_sums};

}  // namespace kernels

#else

namespace kernels {
static bool is_supported() { return false; }
const InstructionSet kVnni = {"avx512_vnni", is_supported, nullptr, nullptr};
}  // namespace kernels

#endif
