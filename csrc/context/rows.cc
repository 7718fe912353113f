#include "context/rows.h"

#include <algorithm>

namespace vllm_relational::context {

QueryBlock::QueryBlock(const float* queries, int32_t heads, int32_t size)
    : num_heads(heads), head_size(size), is_bf16(true) {
  const size_t padded = (static_cast<size_t>(size) + 31) / 32 * 32;
  channels.assign(padded * kHeads, 0.0F);
  pairs.assign(padded / 2 * kHeads, 0);
  for (int32_t h = 0; h < heads; ++h) {
    for (int32_t c = 0; c < size; ++c) {
      const float value = queries[static_cast<size_t>(h) * static_cast<size_t>(size) + static_cast<size_t>(c)];
      const auto bits = std::bit_cast<uint32_t>(value);
      channels[static_cast<size_t>(c) * kHeads + static_cast<size_t>(h)] = value;
      // AVX-512's products of bfloat16 take the smallest numbers, of keys too, for zero: queries of a size at which
      // that would show are left to float32, and what is not finite.
      const uint32_t magnitude = bits & 0x7FFFFFFFU;
      const bool is_moderate = magnitude == 0 || (magnitude >= 0x20000000U && magnitude < 0x5D800000U);
      is_bf16 = is_bf16 && (bits & 0xFFFFU) == 0 && is_moderate;
      pairs[static_cast<size_t>(c / 2) * kHeads + static_cast<size_t>(h)] |= (bits >> 16) << (c % 2 * 16);
    }
  }
}

}  // namespace vllm_relational::context
