// From a prefix tree to the plan: which row comes when, with its fields in which order.
#pragma once

#include <cstdint>
#include <vector>

#include "field_order.h"
#include "prefix_tree.h"

namespace vllm_relational {

// rows: a permutation, in depth-first order of the prefix tree. fields: [num_rows][num_columns], fields[i] is the
// column order of rows[i].
struct TreePlan {
  std::vector<int64_t> rows;
  std::vector<int32_t> fields;
};

// heads: by node, the column that the rest of its rows starts with, or -1.
// Depth first; inside a node and in the unshared rest of a row the columns stand as in `rank` (all columns), so that
// siblings tend to start with the same column. Rows with equal leading cells, shared on purpose or not, are neighbours.
TreePlan write_plan(const PrefixTree& tree, const FieldOrder& rank, const std::vector<int32_t>& heads,
                    const CodeTable& codes);

}  // namespace vllm_relational
