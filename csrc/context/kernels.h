// The innermost loops, once for every level of instructions.
#pragma once

#include <cstdint>

#include "context/rows.h"
#include "context/simd_level.h"

namespace vllm_relational::context {

inline constexpr int32_t kTile = 256;  // rows scored at a time: their scores stay in the first cache
inline constexpr int32_t kGroup = 16;  // rows that share zero points and scales of 4-bit codes

// 4-bit codes of `kGroup` rows: key' = zero + scale * code. `words` [ceil(head_size / 8), kGroup]: a word holds eight
// channels of a row, the first in its lowest bits. See codes.h.
struct CodeGroup {
  const uint32_t* words;
  const uint16_t* scales;  // bfloat16 [head_size]
  const float* channels;   // of the QueryBlock
  const float* base;       // [QueryBlock::kHeads]: what the sums begin with
};

struct Kernels {
  // Scores in float32 of up to kTile rows with the queries: out[h * kTile + i]. Writes up to 15 numbers more behind
  // the last of a head, within its kTile.
  void (*score)(const Rows& rows, RowSet which, const QueryBlock& queries, float* out);

  // The places i of scores that are not below the threshold, ascending, NaN among them: their number. out has room for
  // count + 16.
  int32_t (*select)(const float* scores, int32_t count, float threshold, int32_t* out);

  // sum[c] += sum over i of weights[i] * row which[i], channel c; in the order of i.
  void (*add_rows)(const Rows& rows, RowSet which, const float* weights, float* sum);

  // base[h] + q . (scale * code) of a group: out[h * kTile + i] for its kGroup rows.
  void (*score_codes)(const CodeGroup& group, int32_t head_size, int32_t num_heads, float* out);
};

// has_level(level) must be true.
const Kernels& kernels(SimdLevel level);

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
#endif

}  // namespace vllm_relational::context
