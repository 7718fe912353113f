// What the cells of some rows save in one column when the rows are sorted by them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/value_overlap.h"

namespace vllm_relational {

// Ranks of cells, each as often as it occurs. Few among many values are sorted; where there are more, the values are
// counted and read in their order, so that time is linear and memory is read as it lies.
class RankPool {
 public:
  // Both by rank; they must outlive the pool. values_per_rank: for so many values a rank, or fewer, they are counted.
  RankPool(const OverlapOfRanks& overlaps, std::span<const int64_t> lengths, int64_t values_per_rank)
      : overlaps_(overlaps), lengths_(lengths), values_per_rank_(values_per_rank) {}

  // What they save in all: of equal ones all but the first whole, of the others what the one before begins with too.
  int64_t saved(std::vector<int32_t>& ranks);

  // The pool is now these.
  void fill(std::vector<int32_t> ranks);
  // What a rank of the pool adds to it: the greater of what it shares with the two beside it.
  int64_t gain(int32_t rank) const;

 private:
  bool is_counted(size_t num_ranks) const {
    return static_cast<int64_t>(num_ranks) * values_per_rank_ >= static_cast<int64_t>(lengths_.size());
  }
  void count(const std::vector<int32_t>& ranks);
  int64_t saved_by_counts();
  void gains_by_counts();

  const OverlapOfRanks& overlaps_;
  std::span<const int64_t> lengths_;
  int64_t values_per_rank_;
  bool counted_ = false;
  std::vector<int32_t> sorted_;
  std::vector<int32_t> counts_;  // by rank, all 0 between calls; empty until needed
  std::vector<int64_t> gains_;   // by rank, of those counted
};

}  // namespace vllm_relational
