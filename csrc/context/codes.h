// Keys in 4 bits a channel, with a hard bound on what that costs a score: |q.k - q.k'| <= sum |q_c| scale_c / 2, for
// every query, in the spirit of vector-approximation files (Weber, Schek and Blott, 1998). What the codes cannot rule out
// is computed with the keys themselves, so that results are those of a scan of all keys.
#pragma once

#include "context/scan.h"

namespace vllm_relational::context {

// Of groups of kGroup keys: per channel a zero point and a scale in bfloat16, of a group that holds what is not finite, or
// too large, a zero point of NaN: none of its keys is ever ruled out.
struct CodesView {
  const uint16_t* zeros;   // [num_groups, head_size]
  const uint16_t* scales;  // [num_groups, head_size]
  const uint32_t* words;   // [num_groups, ceil(head_size / 8), kGroup]: see CodeGroup
};

struct Codes {
  std::vector<uint16_t> zeros, scales;
  std::vector<uint32_t> words;
};

Codes encode(const Rows& keys);

// As scan_dipr and scan_topk. `visited` counts the keys that the codes could not rule out for some head.
Hits codes_dipr(const Rows& keys, const CodesView& codes, int64_t start, int64_t stop, QueryHeads queries, float beta,
                const float* lower, SimdLevel level);
Hits codes_topk(const Rows& keys, const CodesView& codes, int64_t start, int64_t stop, QueryHeads queries, int64_t k,
                SimdLevel level);

}  // namespace vllm_relational::context
