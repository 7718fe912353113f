// Cells that differ but begin alike: the first cell after a shared prefix still shares some tokens among siblings.
#pragma once

#include <cstdint>
#include <vector>

#include "prefix_tree.h"

namespace vllm_relational {

// For each value the place in sorted order and the tokens shared with the value before: what ValueOverlaps views.
struct SortedValues {
  std::vector<int32_t> rank;
  std::vector<int64_t> shared;
};
// tokens[offsets[v] .. offsets[v + 1]) is value v.
SortedValues sort_values(std::span<const int32_t> tokens, std::span<const int64_t> offsets);

// Which column the unshared rest of a node's rows starts with, by node; -1 for no preference.
struct Heads {
  std::vector<int32_t> column_of_node;
  int64_t saved = 0;  // what the tree and the heads save together
};

// Chooses heads, and flattens subtrees whose rows save more as neighbours that begin alike than by sharing a few more
// cells. The result saves at least what the tree saved before.
Heads choose_heads(PrefixTree& tree, const PlanRequest& request);

}  // namespace vllm_relational
