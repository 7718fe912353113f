// AVX2: as the portable loops, with the conversions and products of eight numbers at a time; four rows together, so that
// a query is loaded once for them.
#include "context/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define VR_AVX2 __attribute__((target("avx2,fma,f16c")))
#define VR_INLINE inline __attribute__((always_inline))
#define VR_UNROLL _Pragma("GCC unroll 8")

namespace vllm_relational::context {

namespace {

constexpr int32_t kLanes = 8;
constexpr int32_t kHeads = QueryBlock::kHeads;
constexpr int32_t kRowsAtOnce = 4;

template <Number kNumber>
VR_AVX2 VR_INLINE __m256 load_channels(const std::byte* row, int32_t channel) {
  if constexpr (kNumber == Number::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(row) + channel);
  } else {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + static_cast<ptrdiff_t>(channel) * 2));
    if constexpr (kNumber == Number::kF16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
}

// A row in float32, zeros behind its end.
template <Number kNumber>
VR_AVX2 VR_INLINE void widen(const std::byte* row, int32_t head_size, float* out) {
  int32_t c = 0;
  for (; c + kLanes <= head_size; c += kLanes) _mm256_store_ps(out + c, load_channels<kNumber>(row, c));
  for (; c < head_size; ++c) out[c] = number_at(row, kNumber, c);
}

VR_AVX2 VR_INLINE float total(__m256 sums) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

template <Number kNumber>
VR_AVX2 void score_numbers(const Rows& rows, const RowSet& which, const QueryBlock& queries, float* out) {
  const int32_t padded = (rows.head_size + kLanes - 1) / kLanes * kLanes;
  alignas(32) float by_head[kHeads][kMaxHeadSize];
  alignas(32) float wide[kRowsAtOnce][kMaxHeadSize] = {};
  for (int32_t h = 0; h < queries.num_heads; ++h) {
    for (int32_t c = 0; c < padded; ++c) by_head[h][c] = queries.channels.data()[c * kHeads + h];
  }
  for (int64_t begin = 0; begin < which.count; begin += kRowsAtOnce) {
    const int64_t here = which.count - begin < kRowsAtOnce ? which.count - begin : kRowsAtOnce;
    for (int64_t i = 0; i < here; ++i) widen<kNumber>(rows.row(which[begin + i]), rows.head_size, wide[i]);
    for (int32_t h = 0; h < queries.num_heads; ++h) {
      __m256 sums[kRowsAtOnce];
      VR_UNROLL for (int i = 0; i < kRowsAtOnce; ++i) sums[i] = _mm256_setzero_ps();
      for (int32_t c = 0; c < padded; c += kLanes) {
        const __m256 query = _mm256_load_ps(by_head[h] + c);
        VR_UNROLL for (int i = 0; i < kRowsAtOnce; ++i) {
          sums[i] = _mm256_fmadd_ps(_mm256_load_ps(wide[i] + c), query, sums[i]);
        }
      }
      VR_UNROLL for (int i = 0; i < kRowsAtOnce; ++i) {
        if (i < here) out[h * kTile + begin + i] = total(sums[i]);
      }
    }
  }
}

void score(const Rows& rows, RowSet which, const QueryBlock& queries, float* out) {
  switch (rows.number) {
    case Number::kBf16: return score_numbers<Number::kBf16>(rows, which, queries, out);
    case Number::kF16: return score_numbers<Number::kF16>(rows, which, queries, out);
    case Number::kF32: return score_numbers<Number::kF32>(rows, which, queries, out);
  }
}

VR_AVX2 int32_t select(const float* scores, int32_t count, float threshold, int32_t* out) {
  const __m256 least = _mm256_set1_ps(threshold);
  int32_t found = 0;
  int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    auto kept = static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(scores + i), least, _CMP_NLT_UQ)));
    for (; kept != 0; kept &= kept - 1) out[found++] = i + __builtin_ctz(kept);
  }
  for (; i < count; ++i) {
    out[found] = i;
    found += !(scores[i] < threshold);
  }
  return found;
}

template <Number kNumber>
VR_AVX2 void add_numbers(const Rows& rows, const RowSet& which, const float* weights, float* sum) {
  for (int64_t i = 0; i < which.count; ++i) {
    const std::byte* const row = rows.row(which[i]);
    const __m256 weight = _mm256_set1_ps(weights[i]);
    int32_t c = 0;
    for (; c + kLanes <= rows.head_size; c += kLanes) {
      _mm256_storeu_ps(sum + c, _mm256_fmadd_ps(weight, load_channels<kNumber>(row, c), _mm256_loadu_ps(sum + c)));
    }
    for (; c < rows.head_size; ++c) sum[c] += weights[i] * number_at(row, kNumber, c);
  }
}

void add_rows(const Rows& rows, RowSet which, const float* weights, float* sum) {
  switch (rows.number) {
    case Number::kBf16: return add_numbers<Number::kBf16>(rows, which, weights, sum);
    case Number::kF16: return add_numbers<Number::kF16>(rows, which, weights, sum);
    case Number::kF32: return add_numbers<Number::kF32>(rows, which, weights, sum);
  }
}

VR_AVX2 void score_codes(const CodeGroup& group, int32_t head_size, int32_t num_heads, float* out) {
  const __m256i low = _mm256_set1_epi32(15);
  for (int32_t half = 0; half < kGroup; half += kLanes) {
    __m256 sums[kHeads];
    VR_UNROLL for (int h = 0; h < kHeads; ++h) sums[h] = _mm256_set1_ps(h < num_heads ? group.base[h] : 0.0F);
    for (int32_t c = 0; c < head_size; c += 8) {
      __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group.words + c / 8 * kGroup + half));
      const int32_t end = head_size - c < 8 ? head_size - c : 8;
      for (int32_t j = 0; j < end; ++j) {
        const __m256 scale = _mm256_set1_ps(from_bf16(group.scales[c + j]));
        const __m256 codes = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_and_si256(words, low)));
        const float* const q = group.channels + static_cast<ptrdiff_t>(c + j) * kHeads;
        VR_UNROLL for (int h = 0; h < kHeads; ++h) sums[h] = _mm256_fmadd_ps(codes, _mm256_set1_ps(q[h]), sums[h]);
        words = _mm256_srli_epi32(words, 4);
      }
    }
    for (int h = 0; h < num_heads; ++h) _mm256_storeu_ps(out + h * kTile + half, sums[h]);
  }
}

}  // namespace

const Kernels kAvx2Kernels{score, select, add_rows, score_codes};

}  // namespace vllm_relational::context

#endif
