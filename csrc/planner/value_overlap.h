// How the values of one column begin alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace vllm_relational {

// For each value the place in sorted order and the tokens shared with the value before: what ValueOverlaps views.
struct SortedValues {
  std::vector<int32_t> rank;
  std::vector<int64_t> shared;
};
// tokens[offsets[v] .. offsets[v + 1]) is value v.
SortedValues sort_values(std::span<const int32_t> tokens, std::span<const int64_t> offsets);

// Tokens that any two values share at their start: the least among the neighbours between them in sorted order. A
// table of minima over blocks, with 1.4 numbers a value; `shared` must outlive it.
class OverlapOfRanks {
 public:
  explicit OverlapOfRanks(std::span<const int64_t> shared);

  // Needs low < high, both ranks.
  int64_t between(int32_t low, int32_t high) const;

  std::span<const int64_t> shared() const { return shared_; }

 private:
  int64_t least(size_t begin, size_t end) const;  // of shared_[begin .. end), not empty

  std::span<const int64_t> shared_;
  std::vector<std::vector<int64_t>> min_of_blocks_;  // [level][i]: over 2^level blocks from block i
};

}  // namespace vllm_relational
