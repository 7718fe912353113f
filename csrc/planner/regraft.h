// Local search on a prefix tree: takes a row or a subtree out and puts it back where it shares more.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/prefix_tree.h"

namespace vllm_relational {

// The rows of each value, for finding rows that share something with a prefix. `table` must outlive it.
class ValueIndex {
 public:
  explicit ValueIndex(const PlanTable& table);

  // No tree saves more: each value once, and once more whatever repeats.
  int64_t max_saved() const { return max_saved_; }

  struct Rows {
    const int32_t* first;
    int32_t size;
  };
  Rows rows_of(int32_t factor, int32_t code) const {
    const auto value = static_cast<size_t>(first_value_[static_cast<size_t>(factor)] + code);
    return {rows_.data() + start_[value], static_cast<int32_t>(start_[value + 1] - start_[value])};
  }

 private:
  std::vector<int64_t> first_value_;  // [num_factors]
  std::vector<int64_t> start_;        // [num_values + 1]
  std::vector<int32_t> rows_;         // ascending per value
  int64_t max_saved_ = 0;
};

// One pass over all nodes below the root; every move saves more than it costs. Returns what the tree saves then. `work`
// counts cells compared and ends the pass between two groups of nodes when it falls below zero. Deterministic for a
// seed, on any number of threads.
int64_t regraft(PrefixTree& tree, const ValueIndex& index, uint64_t seed, int64_t& work, Workers& workers);

// Moves one row in limits.rows_per_random_move beside a random row with a value of its own: a start for another search.
// Returns these rows and what stood beside them.
std::vector<int32_t> move_at_random(PrefixTree& tree, const ValueIndex& index, uint64_t seed, int64_t& work);

// The same as `regraft`, but looks at some nodes only, and then at those beside which others came or went: what a few
// moves have changed costs no pass over all nodes.
int64_t regraft_around(PrefixTree& tree, const ValueIndex& index, std::vector<int32_t> nodes, uint64_t seed,
                       int64_t& work, Workers& workers);

}  // namespace vllm_relational
