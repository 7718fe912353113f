// Cells that differ but begin alike: the first cell after a shared prefix still shares some tokens among siblings.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/prefix_tree.h"
#include "planner/value_overlap.h"
#include "workers.h"

namespace vllm_relational {

// A column whose values begin alike, so that the unshared rest of a row may start with it.
struct LeadingColumn {
  int32_t column = 0;
  int32_t factor = -1;         // -1 when it is in none
  std::vector<int32_t> needs;  // factors of the columns that must stand before, -1 for a column in none
  std::vector<int32_t> rank_of_row;
  std::vector<int64_t> length_of_rank;
  OverlapOfRanks overlaps;
};

// The few columns that are worth most as the first cell of all rows; none where the request knows no overlaps.
std::vector<LeadingColumn> find_leading_columns(const PlanRequest& request, const PlanTable& table, Workers& workers);

// Which column the unshared rest of a node's children starts with, by node; -1 for no preference.
struct LeadingColumns {
  std::vector<int32_t> column_of_node;
  int64_t saved = 0;  // tokens that the tree and the leading columns save together

  int32_t of(int32_t node) const {
    return static_cast<size_t>(node) < column_of_node.size() ? column_of_node[static_cast<size_t>(node)] : -1;
  }
};

// Chooses leading columns. Where rows save more as neighbours that begin alike than by sharing a few more cells, their
// subtree is dissolved, and rows with the same first cell are clustered anew. branches_count: whether subtrees that
// share the column are counted among the neighbours, or rows only: which is better differs from table to table.
LeadingColumns choose_leading_columns(PrefixTree& tree, const std::vector<LeadingColumn>& columns,
                                      bool branches_count, Workers& workers);

}  // namespace vllm_relational
