// Scores of all keys of a range with all query heads of their KV head: the exact searches, and the reference of every
// other index in speed.
#pragma once

#include "context/hits.h"

namespace vllm_relational::context {

// Query heads that share a KV head: float32 [num_heads, head_size].
struct QueryHeads {
  const float* data;
  int32_t num_heads;
};

// Keys in [start, stop) with q.k >= max(lower[h], the greatest q.k in the range) - beta. lower: [num_heads], or null for
// none. beta: >= 0. Scores are float32.
Hits scan_dipr(const Rows& keys, int64_t start, int64_t stop, QueryHeads queries, float beta, const float* lower,
               SimdLevel level);

// The k keys of [start, stop) with the greatest scores, or all where there are fewer; see Greatest.
Hits scan_topk(const Rows& keys, int64_t start, int64_t stop, QueryHeads queries, int64_t k, SimdLevel level);

// The same over listed keys, ascending.
Hits scan_listed_dipr(const Rows& keys, std::span<const int32_t> tokens, QueryHeads queries, float beta,
                      const float* lower, SimdLevel level);
Hits scan_listed_topk(const Rows& keys, std::span<const int32_t> tokens, QueryHeads queries, int64_t k, SimdLevel level);

// Scores of all heads with listed rows: out [num_heads, which.count].
void scan_scores(const Rows& keys, RowSet which, QueryHeads queries, SimdLevel level, float* out);

}  // namespace vllm_relational::context
