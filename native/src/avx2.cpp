// AVX2: a word's bits become two masks of 32 bytes, which cut out of the activations what counts.
#include "kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

namespace kernels {

namespace {

constexpr std::size_t kHalf = 32;  // bytes of a register

AVX2 inline __m256i mask_of(std::uint32_t bits) {
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2,
                                          2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i single = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), spread);
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, single), single);
}

AVX2 inline std::int32_t total(__m256i sums) {
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtsi128_si32(four);
}

template <std::size_t Tokens>
AVX2 void one_bit_of(const Activations& x, const OneBitRows& w, std::int32_t* sums) {
  const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
  for (std::size_t row = 0; row < w.rows; ++row) {
    const std::uint64_t* words = w.words + row * w.stride;
    __m256i acc[Tokens];
    for (auto& each : acc) each = _mm256_setzero_si256();
    for (std::size_t j = 0; j < x.words; ++j) {
      for (std::size_t half = 0; half < 2; ++half) {
        const __m256i mask = mask_of(static_cast<std::uint32_t>(words[j] >> (kHalf * half)));
        for (std::size_t token = 0; token < Tokens; ++token) {
          const std::int8_t* values =
              x.values + (token * x.words + j) * kWordBits + kHalf * half;
          const __m256i kept = _mm256_and_si256(
              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)), mask);
          // Sums of two: at most 254 in size, so 16 bits do not saturate.
          const __m256i pairs = _mm256_maddubs_epi16(ones8, kept);
          acc[token] = _mm256_add_epi32(acc[token], _mm256_madd_epi16(pairs, ones16));
        }
      }
    }
    for (std::size_t token = 0; token < Tokens; ++token) {
      sums[token * w.rows + row] = total(acc[token]);
    }
  }
}

AVX2 void one_bit_sums(const Activations& x, const OneBitRows& w, std::int32_t* sums) {
  switch (x.tokens) {
    case 1: return one_bit_of<1>(x, w, sums);
    case 2: return one_bit_of<2>(x, w, sums);
    case 3: return one_bit_of<3>(x, w, sums);
    default: return one_bit_of<4>(x, w, sums);
  }
}

// Widened to 16 bits: products of bytes in pairs (vpmaddubsw) would saturate.
AVX2 void int8_sums(const Activations& x, const Int8Rows& w, std::int32_t* sums) {
  for (std::size_t row = 0; row < w.rows; ++row) {
    const std::int8_t* bytes = w.bytes + row * w.stride;
    for (std::size_t token = 0; token < x.tokens; ++token) {
      const std::int8_t* values = x.values + token * x.words * kWordBits;
      __m256i acc = _mm256_setzero_si256();
      std::size_t i = 0;
      for (; i + 16 <= w.inputs; i += 16) {
        const __m256i a = _mm256_cvtepi8_epi16(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i)));
        const __m256i b = _mm256_cvtepi8_epi16(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i)));
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
      }
      std::int32_t sum = total(acc);
      for (; i < w.inputs; ++i) sum += static_cast<std::int32_t>(bytes[i]) * values[i];
      sums[token * w.rows + row] = sum;
    }
  }
}

bool is_supported() { return __builtin_cpu_supports("avx2"); }

}  // namespace

const InstructionSet kAvx2 = {"avx2", is_supported, one_bit_sums, int8_sums};

}  // namespace kernels

#else

namespace kernels {
static bool is_supported() { return false; }
const InstructionSet kAvx2 = {"avx2", is_supported, nullptr, nullptr};
}  // namespace kernels

#endif
