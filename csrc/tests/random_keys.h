// Keys and queries for tests of the context search.
#pragma once

#include <cstdint>
#include <vector>

#include "context/rows.h"
#include "context/simd_level.h"

namespace vllm_relational::context {

// Keys of a number type, in memory of exactly their size. Keys near each other in the context are alike.
struct RandomKeys {
  RandomKeys(int64_t count, int32_t head_size, Number number, uint32_t seed);

  double product(int64_t i, const float* query) const;

  std::vector<std::byte> bytes;
  Rows rows;
};

// Float32 [num_heads, head_size].
std::vector<float> random_queries(int32_t num_heads, int32_t head_size, bool is_bf16);

template <class Each>
void for_each_level(Each each) {
  for (const NamedLevel& named : kSimdLevels) {
    if (has_level(named.level)) each(named.level);
  }
}

}  // namespace vllm_relational::context
