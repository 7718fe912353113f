#include "trees.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "check.h"

namespace vllm_relational {
namespace {

// The weight straight from the definition: what may stand in the prefix, given what it needs.
int64_t weight_of(const PlanTable& table, const int32_t* codes, const int32_t* lengths) {
  int64_t sum = 0;
  for (int32_t f = 0; f < table.num_factors; ++f) sum += codes[f] >= 0 && is_usable(table, codes, f) ? lengths[f] : 0;
  return sum;
}

// Returns the rows below.
int32_t check_subtree(const PrefixTree& tree, int32_t node, int64_t& saved) {
  const PlanTable& table = tree.table();
  CHECK(tree.weight(node) == weight_of(table, tree.codes(node), tree.lengths(node)));
  if (tree.is_leaf(node)) return 1;
  CHECK(node == tree.root() || tree.num_children(node) >= 2);
  const std::vector<int32_t> children = tree.children(node);
  CHECK(static_cast<int32_t>(children.size()) == tree.num_children(node));
  saved += (tree.num_children(node) - 1) * tree.weight(node);
  int32_t rows = 0;
  for (const int32_t child : children) {
    CHECK(tree.parent(child) == node);
    CHECK(contains(tree.codes(child), tree.codes(node), table.num_factors));
    rows += check_subtree(tree, child, saved);
  }
  return rows;
}

// What all rows of a set share.
int64_t weight_of_rows(const PlanTable& table, unsigned rows) {
  const auto first = static_cast<int32_t>(std::countr_zero(rows));
  std::vector<int32_t> shared(table.codes_of(first), table.codes_of(first) + table.num_factors);
  for (int32_t row = 0; row < table.num_rows; ++row) {
    if ((rows >> row & 1u) == 0) continue;
    for (int32_t f = 0; f < table.num_factors; ++f) {
      if (table.codes_of(row)[f] != shared[at(f)]) shared[at(f)] = kNoValue;
    }
  }
  return weight_of(table, shared.data(), table.lengths_of(first));
}

}  // namespace

Table some_table(int64_t max_columns, int64_t max_rows, std::mt19937& random) {
  Table table = random_table(draw(random, 1, max_columns), draw(random, 1, max_rows), 50, 1'000'000, random);
  if (draw(random, 0, 1) == 1) table.before = some_pairs(table.num_columns, draw(random, 1, 4), random);
  return table;
}

void check_tree(const PrefixTree& tree) {
  int64_t saved = 0;
  CHECK(check_subtree(tree, tree.root(), saved) == tree.table().num_rows);
  CHECK(tree.saved() == saved);
}

// Two children are enough: a node of k is as good as k - 1 nodes of two with the same prefix.
int64_t max_saving_of_any_tree(const PlanTable& table) {
  const unsigned all = (1u << table.num_rows) - 1;
  std::vector<int64_t> best(all + 1, 0);
  for (unsigned rows = 1; rows <= all; ++rows) {
    if (std::has_single_bit(rows)) continue;
    for (unsigned part = (rows - 1) & rows; part > 0; part = (part - 1) & rows) {
      best[rows] = std::max(best[rows], best[part] + best[rows ^ part]);
    }
    best[rows] += weight_of_rows(table, rows);
  }
  return best[all];
}

}  // namespace vllm_relational
