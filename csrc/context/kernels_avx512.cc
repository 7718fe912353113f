// AVX-512: 16 rows at a time, turned so that a register holds one channel (of bfloat16 a pair) of all of them. A query's
// channel is then one number for the whole register, and no sum goes across lanes.
//
// Functions carry their instructions as an attribute: no flag of the file lets the compiler use them elsewhere, in code
// of the standard library that other files share.
#include "context/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define VR_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define VR_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define VR_INLINE inline __attribute__((always_inline))
#define VR_UNROLL _Pragma("GCC unroll 16")

namespace vllm_relational::context {

namespace {

constexpr int32_t kLanes = 16;
constexpr int32_t kHeads = QueryBlock::kHeads;

enum class Way { kPairs, kBf16, kF16, kF32 };  // kPairs: products of bfloat16 pairs

// Row i becomes lane i of every register.
VR_AVX512 VR_INLINE void turn(__m512i (&r)[16]) {
  __m512i t[16];
  VR_UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  VR_UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  VR_UNROLL for (int j = 0; j < 4; ++j) {
    const __m512i even_a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    const __m512i even_b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i odd_a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i odd_b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(even_a, even_b, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(even_a, even_b, 0xdd);
    t[4 + j] = _mm512_shuffle_i32x4(odd_a, odd_b, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(odd_a, odd_b, 0xdd);
  }
  VR_UNROLL for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// 16 words of a row, zeros where the mask has none: a channel each, of bfloat16 two.
template <Way kWay>
VR_AVX512 VR_INLINE __m512i load_words(const std::byte* row, int32_t word, __mmask16 mask) {
  if constexpr (kWay == Way::kF16) {
    const __m256i halves = _mm256_maskz_loadu_epi16(mask, row + static_cast<ptrdiff_t>(word) * 2);
    return _mm512_castps_si512(_mm512_cvtph_ps(halves));
  } else {
    return _mm512_maskz_loadu_epi32(mask, row + static_cast<ptrdiff_t>(word) * 4);
  }
}

VR_AVX512 VR_INLINE __mmask16 mask_of(int32_t lanes) {
  return static_cast<__mmask16>(lanes >= kLanes ? 0xFFFF : (1 << lanes) - 1);
}

// One word of 16 rows with all heads.
template <Way kWay, int kNumHeads>
VR_AVX512 VR_INLINE void multiply(__m512i words, int32_t word, const float* channels, __m512 (&sums)[kNumHeads]) {
  if constexpr (kWay == Way::kBf16) {
    const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    const __m512 second = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xFFFF0000U))));
    const float* const q = channels + static_cast<ptrdiff_t>(word) * 2 * kHeads;
    VR_UNROLL for (int h = 0; h < kNumHeads; ++h) sums[h] = _mm512_fmadd_ps(first, _mm512_set1_ps(q[h]), sums[h]);
    VR_UNROLL for (int h = 0; h < kNumHeads; ++h) {
      sums[h] = _mm512_fmadd_ps(second, _mm512_set1_ps(q[kHeads + h]), sums[h]);
    }
  } else {
    const float* const q = channels + static_cast<ptrdiff_t>(word) * kHeads;
    VR_UNROLL for (int h = 0; h < kNumHeads; ++h) {
      sums[h] = _mm512_fmadd_ps(_mm512_castsi512_ps(words), _mm512_set1_ps(q[h]), sums[h]);
    }
  }
}

template <int kNumHeads>
VR_AVX512_BF16 VR_INLINE void multiply_pairs(__m512i words, const uint32_t* q, __m512 (&sums)[kNumHeads]) {
  VR_UNROLL for (int h = 0; h < kNumHeads; ++h) {
    const __m512i query = _mm512_set1_epi32(static_cast<int>(q[h]));
    sums[h] = _mm512_dpbf16_ps(sums[h], reinterpret_cast<__m512bh>(words), reinterpret_cast<__m512bh>(query));
  }
}

// The words `word` to `word` + 15 of 16 rows, turned.
template <Way kWay>
VR_AVX512 VR_INLINE void load_turned(const std::byte* const (&at)[16], int32_t word, int32_t num_words, __m512i (&r)[16]) {
  const __mmask16 mask = mask_of(num_words - word);
  VR_UNROLL for (int i = 0; i < 16; ++i) r[i] = load_words<kWay>(at[i], word, mask);
  turn(r);
}

// Where 16 rows lie; behind the last of them the last again.
VR_INLINE void find_rows(const Rows& rows, const RowSet& which, int64_t begin, const std::byte* (&at)[16]) {
  for (int i = 0; i < 16; ++i) {
    const int64_t place = begin + i < which.count ? begin + i : which.count - 1;
    at[i] = rows.row(which[place]);
  }
}

// The rows after these, where they do not lie in order.
VR_INLINE void fetch_next(const Rows& rows, const RowSet& which, int64_t begin) {
  if (which.listed == nullptr || begin >= which.count) return;
  const int64_t end = begin + 16 < which.count ? begin + 16 : which.count;
  for (int64_t i = begin; i < end; ++i) {
    const std::byte* const row = rows.row(which[i]);
    for (size_t b = 0; b < static_cast<size_t>(rows.head_size) * bytes_of(rows.number); b += 64) __builtin_prefetch(row + b);
  }
}

#define VR_SCORE_LOOP(kWay, MULTIPLY)                                                           \
  const int32_t num_words = kWay == Way::kPairs || kWay == Way::kBf16 ? rows.head_size / 2 : rows.head_size; \
  for (int64_t begin = 0; begin < which.count; begin += kLanes) {                               \
    const std::byte* at[16];                                                                    \
    find_rows(rows, which, begin, at);                                                          \
    fetch_next(rows, which, begin + kLanes);                                                    \
    __m512 sums[kNumHeads];                                                                     \
    VR_UNROLL for (int h = 0; h < kNumHeads; ++h) sums[h] = _mm512_setzero_ps();                \
    for (int32_t word = 0; word < num_words; word += kLanes) {                                  \
      __m512i r[16];                                                                            \
      load_turned<kWay>(at, word, num_words, r);                                                \
      VR_UNROLL for (int w = 0; w < 16; ++w) { MULTIPLY; }                                      \
    }                                                                                           \
    VR_UNROLL for (int h = 0; h < kNumHeads; ++h) _mm512_storeu_ps(out + h * kTile + begin, sums[h]); \
  }

template <Way kWay, int kNumHeads>
VR_AVX512 void score_heads(const Rows& rows, const RowSet& which, const QueryBlock& queries, float* out) {
  const float* const channels = queries.channels.data();
  VR_SCORE_LOOP(kWay, (multiply<kWay, kNumHeads>(r[w], word + w, channels, sums)))
}

template <int kNumHeads>
VR_AVX512_BF16 void score_pairs(const Rows& rows, const RowSet& which, const QueryBlock& queries, float* out) {
  const uint32_t* const pairs = queries.pairs.data();
  VR_SCORE_LOOP(Way::kPairs, (multiply_pairs<kNumHeads>(r[w], pairs + static_cast<ptrdiff_t>(word + w) * kHeads, sums)))
}

using Score = void (*)(const Rows&, const RowSet&, const QueryBlock&, float*);

template <Way kWay>
Score score_of(int32_t num_heads) {
  static constexpr Score kByHeads[kHeads] = {
      score_heads<kWay, 1>, score_heads<kWay, 2>, score_heads<kWay, 3>, score_heads<kWay, 4>,
      score_heads<kWay, 5>, score_heads<kWay, 6>, score_heads<kWay, 7>, score_heads<kWay, 8>};
  return kByHeads[num_heads - 1];
}

Score score_pairs_of(int32_t num_heads) {
  static constexpr Score kByHeads[kHeads] = {score_pairs<1>, score_pairs<2>, score_pairs<3>, score_pairs<4>,
                                             score_pairs<5>, score_pairs<6>, score_pairs<7>, score_pairs<8>};
  return kByHeads[num_heads - 1];
}

Score score_of(Number number, int32_t num_heads) {
  switch (number) {
    case Number::kBf16: return score_of<Way::kBf16>(num_heads);
    case Number::kF16: return score_of<Way::kF16>(num_heads);
    case Number::kF32: break;
  }
  return score_of<Way::kF32>(num_heads);
}

void score(const Rows& rows, RowSet which, const QueryBlock& queries, float* out) {
  score_of(rows.number, queries.num_heads)(rows, which, queries, out);
}

void score_with_pairs(const Rows& rows, RowSet which, const QueryBlock& queries, float* out) {
  const bool in_pairs = rows.number == Number::kBf16 && queries.is_bf16;
  const Score found = in_pairs ? score_pairs_of(queries.num_heads) : score_of(rows.number, queries.num_heads);
  found(rows, which, queries, out);
}

VR_AVX512 int32_t select(const float* scores, int32_t count, float threshold, int32_t* out) {
  const __m512 least = _mm512_set1_ps(threshold);
  int32_t found = 0;
  for (int32_t i = 0; i < count; i += kLanes) {
    const __m512 seen = _mm512_maskz_loadu_ps(mask_of(count - i), scores + i);
    uint32_t kept = _mm512_mask_cmp_ps_mask(mask_of(count - i), seen, least, _CMP_NLT_UQ);
    for (; kept != 0; kept &= kept - 1) out[found++] = i + __builtin_ctz(kept);
  }
  return found;
}

template <Number kNumber>
VR_AVX512 VR_INLINE __m512 load_channels(const std::byte* row, int32_t channel, __mmask16 mask) {
  if constexpr (kNumber == Number::kF32) {
    return _mm512_maskz_loadu_ps(mask, row + static_cast<ptrdiff_t>(channel) * 4);
  } else {
    const __m256i halves = _mm256_maskz_loadu_epi16(mask, row + static_cast<ptrdiff_t>(channel) * 2);
    if constexpr (kNumber == Number::kF16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
}

template <Number kNumber>
VR_AVX512 void add_numbers(const Rows& rows, const RowSet& which, const float* weights, float* sum) {
  for (int32_t c = 0; c < rows.head_size; c += 4 * kLanes) {
    __mmask16 mask[4];
    __m512 sums[4];
    VR_UNROLL for (int j = 0; j < 4; ++j) {
      const int32_t left = rows.head_size - c - j * kLanes;
      mask[j] = mask_of(left < 0 ? 0 : left);
      sums[j] = _mm512_maskz_loadu_ps(mask[j], sum + c + j * kLanes);
    }
    for (int64_t i = 0; i < which.count; ++i) {
      const std::byte* const row = rows.row(which[i]);
      const __m512 weight = _mm512_set1_ps(weights[i]);
      VR_UNROLL for (int j = 0; j < 4; ++j) {
        sums[j] = _mm512_fmadd_ps(weight, load_channels<kNumber>(row, c + j * kLanes, mask[j]), sums[j]);
      }
    }
    VR_UNROLL for (int j = 0; j < 4; ++j) _mm512_mask_storeu_ps(sum + c + j * kLanes, mask[j], sums[j]);
  }
}

void add_rows(const Rows& rows, RowSet which, const float* weights, float* sum) {
  switch (rows.number) {
    case Number::kBf16: return add_numbers<Number::kBf16>(rows, which, weights, sum);
    case Number::kF16: return add_numbers<Number::kF16>(rows, which, weights, sum);
    case Number::kF32: return add_numbers<Number::kF32>(rows, which, weights, sum);
  }
}

template <int kNumHeads>
VR_AVX512 void score_codes_of(const CodeGroup& group, int32_t head_size, float* out) {
  const __m512i low = _mm512_set1_epi32(15);
  __m512 sums[kNumHeads];
  VR_UNROLL for (int h = 0; h < kNumHeads; ++h) sums[h] = _mm512_set1_ps(group.base[h]);
  for (int32_t c = 0; c < head_size; c += 8) {
    __m512i words = _mm512_loadu_si512(group.words + c / 8 * kGroup);
    const int32_t end = head_size - c < 8 ? head_size - c : 8;
    for (int32_t j = 0; j < end; ++j) {
      const __m512 scale = _mm512_set1_ps(from_bf16(group.scales[c + j]));
      const __m512 codes = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_and_si512(words, low)));
      const float* const q = group.channels + static_cast<ptrdiff_t>(c + j) * kHeads;
      VR_UNROLL for (int h = 0; h < kNumHeads; ++h) sums[h] = _mm512_fmadd_ps(codes, _mm512_set1_ps(q[h]), sums[h]);
      words = _mm512_srli_epi32(words, 4);
    }
  }
  VR_UNROLL for (int h = 0; h < kNumHeads; ++h) _mm512_storeu_ps(out + h * kTile, sums[h]);
}

void score_codes(const CodeGroup& group, int32_t head_size, int32_t num_heads, float* out) {
  using ScoreCodes = void (*)(const CodeGroup&, int32_t, float*);
  static constexpr ScoreCodes kByHeads[kHeads] = {score_codes_of<1>, score_codes_of<2>, score_codes_of<3>,
                                                  score_codes_of<4>, score_codes_of<5>, score_codes_of<6>,
                                                  score_codes_of<7>, score_codes_of<8>};
  kByHeads[num_heads - 1](group, head_size, out);
}

}  // namespace

const Kernels kAvx512Kernels{score, select, add_rows, score_codes};
const Kernels kAvx512Bf16Kernels{score_with_pairs, select, add_rows, score_codes};

}  // namespace vllm_relational::context

#endif
