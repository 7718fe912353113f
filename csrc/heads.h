// Cells that differ but begin alike: the first cell after a shared prefix still shares some tokens among siblings.
#pragma once

#include <cstdint>
#include <vector>

#include "prefix_tree.h"

namespace vllm_relational {

// Which column the unshared rest of a node's rows starts with, by node; -1 for no preference.
struct Heads {
  std::vector<int32_t> column_of_node;
  int64_t saved = 0;  // what the tree and the heads save together
};

// Chooses heads, and flattens subtrees whose rows save more as neighbours that begin alike than by sharing a few more
// cells. The result saves at least what the tree saved before.
Heads choose_heads(PrefixTree& tree, const PlanRequest& request);

}  // namespace vllm_relational
