// Written plans: each row starts with the cells of its path, and the rows save what their tree says.
#include "planner/plan_writer.h"

#include <algorithm>

#include "check.h"
#include "planner/cluster.h"
#include "trees.h"

using namespace vllm_relational;

namespace {

// The columns that stand in the prefix of a node.
std::vector<int32_t> columns_of_prefix(const PrefixTree& tree, int32_t node) {
  std::vector<int32_t> columns;
  for (int32_t f = 0; f < tree.table().num_factors; ++f) {
    if (tree.codes(node)[f] < 0 || !is_usable(tree.table(), tree.codes(node), f)) continue;
    const std::vector<int32_t>& of_factor = tree.table().columns_of[at(f)];
    columns.insert(columns.end(), of_factor.begin(), of_factor.end());
  }
  std::sort(columns.begin(), columns.end());
  return columns;
}

// Of every node on the way down the prefix comes before all else; behind the last the columns stand as in `rank`.
void check_row(const PrefixTree& tree, const FieldOrders& orders, const FieldOrder& rank, int32_t row) {
  for (int32_t node = tree.parent(row); node >= 0; node = tree.parent(node)) {
    const std::vector<int32_t> prefix = columns_of_prefix(tree, node);
    std::vector<int32_t> first(orders.of(row), orders.of(row) + prefix.size());
    std::sort(first.begin(), first.end());
    CHECK(first == prefix);
  }
  FieldOrder rest = rank;
  const std::vector<int32_t> shared = columns_of_prefix(tree, tree.parent(row));
  std::erase_if(rest, [&](int32_t c) { return std::binary_search(shared.begin(), shared.end(), c); });
  CHECK(std::equal(rest.begin(), rest.end(), orders.of(row) + shared.size()));
}

void rows_start_with_their_path(std::mt19937& random) {
  TreeParts parts(random_table(draw(random, 1, 6), draw(random, 1, 80), 9, 30, random));
  auto& [table, request, workers, plan_table, counts, tree] = parts;
  cluster_below(tree, tree.root(), kChoices[random() % std::size(kChoices)], counts, workers);
  const FieldOrder rank = random_order(table.num_columns, random);
  const FieldOrders orders = write_fields(tree, rank, {}, request.precedence);
  for (int32_t row = 0; row < plan_table.num_rows; ++row) check_row(tree, orders, rank, row);
}

// With columns that need others, too.
void rows_save_what_the_tree_says(std::mt19937& random) {
  TreeParts parts(some_table(7, 100, random));
  auto& [table, request, workers, plan_table, counts, tree] = parts;
  cluster_below(tree, tree.root(), Choice::kClosest, counts, workers);
  const FieldOrders orders = write_fields(tree, random_order(table.num_columns, random), {}, request.precedence);
  const TreePlan plan = as_plan(request, orders, workers);
  check_plan(table, plan);
  CHECK(saved_by_plan(table, plan) >= tree.saved());
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 60; ++i) rows_start_with_their_path(random);
  for (int i = 0; i < 60; ++i) rows_save_what_the_tree_says(random);
  return 0;
}
