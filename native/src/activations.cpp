// Activations to int8, symmetric, one step size per row; rounding is to nearest, ties to even.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.hpp"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace kernels {

namespace {

constexpr float kLevels = 127.0f;
constexpr float kSmallest = 1e-30f;  // below it the reciprocal would overflow

float largest_magnitude(const float* row, std::size_t count) {
  // Of floats without their sign the bits are in the order of the values, infinity and NaN last.
  std::uint32_t most = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, row + i, sizeof bits);
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  float value;
  std::memcpy(&value, &most, sizeof value);
  return value;
}

void round_row(const float* row, std::size_t count, float steps, std::int8_t* to) {
  std::size_t i = 0;
#if defined(__x86_64__)
  const __m128 factor = _mm_set1_ps(steps);
  for (; i + 16 <= count; i += 16) {
    __m128i part[4];
    for (int j = 0; j < 4; ++j) {
      part[j] = _mm_cvtps_epi32(_mm_mul_ps(_mm_loadu_ps(row + i + 4 * j), factor));
    }
    const __m128i low = _mm_packs_epi32(part[0], part[1]);
    const __m128i high = _mm_packs_epi32(part[2], part[3]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm_packs_epi16(low, high));
  }
#endif
  for (; i < count; ++i) {
    to[i] = static_cast<std::int8_t>(std::lrintf(row[i] * steps));
  }
}

}  // namespace

float quantise_row(const float* row, std::size_t count, std::int8_t* to, std::size_t padded) {
  const float most = largest_magnitude(row, count);
  if (!std::isfinite(most)) {
    std::memset(to, 0, padded);
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (most < kSmallest) {
    std::memset(to, 0, padded);
    return 0.0f;
  }
  round_row(row, count, kLevels / most, to);
  std::memset(to + count, 0, padded - count);
  return most / kLevels;
}

}  // namespace kernels
