// Exact softmax over listed tokens.
#pragma once

#include "context/hits.h"

namespace vllm_relational::context {

// Attention of every head of `hits` over its own tokens: softmax(scale * score) . values.
// out: [num_heads, head_size]; lse: [num_heads], the log of the softmax's denominator. A head without tokens gets zeros
// and -inf, so that a merge by log-sum-exp takes no notice of it.
void attend(const Rows& values, std::span<const int64_t> offsets, const int32_t* tokens, const float* scores,
            float scale, SimdLevel level, float* out, float* lse);

}  // namespace vllm_relational::context
