// Leading columns: they only add to what the tree saves, and a written plan saves what they promise.
#include "planner/leading_columns.h"

#include "check.h"
#include "planner/cluster.h"
#include "planner/plan_writer.h"
#include "trees.h"

using namespace vllm_relational;

namespace {

void they_fit_their_nodes_and_keep_their_promise(std::mt19937& random) {
  Table table = random_table(draw(random, 1, 5), draw(random, 2, 120), 40, 12, random);
  if (draw(random, 0, 1) == 1) table.before = some_pairs(table.num_columns, 3, random);
  add_texts(table, 2, random);
  add_overlaps(table);
  const PlanRequest request = table.request();
  Workers workers(2);
  const PlanTable plan_table = make_plan_table(request, workers);
  const std::vector<LeadingColumn> columns = find_leading_columns(request, plan_table, workers);
  CHECK(static_cast<int64_t>(columns.size()) <= std::min(table.num_columns, table.limits.max_leading_columns));
  for (const bool branches_count : {false, true}) {
    PrefixTree tree(plan_table);
    CodeCounts counts = make_counts(plan_table);
    cluster_below(tree, tree.root(), Choice::kGreatestGain, counts, workers);
    const LeadingColumns leading = choose_leading_columns(tree, columns, branches_count, workers);
    check_tree(tree);
    CHECK(leading.saved >= tree.saved());
    const FieldOrders orders = write_fields(tree, random_order(table.num_columns, random), leading, request.precedence);
    const TreePlan plan = as_plan(request, orders, workers);
    check_plan(table, plan);
    CHECK(saved_by_plan(table, plan) >= leading.saved);
  }
}

// No two cells are equal; those of the second column begin alike in three tokens, those of the first in none.
void the_column_that_begins_alike_leads() {
  Table table;
  table.num_columns = 2, table.num_rows = 3;
  table.codes = {0, 1, 2, /* second column */ 2, 0, 1};
  table.lengths = {{2, 2, 2}, {4, 4, 4}};
  table.texts.resize(2);
  for (int32_t value = 0; value < 3; ++value) {
    table.texts[0].add(std::vector<int32_t>{value, 9});
    table.texts[1].add(std::vector<int32_t>{7, 7, 7, value});
  }
  add_overlaps(table);
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  PrefixTree tree(plan_table);
  const auto columns = find_leading_columns(request, plan_table, workers);
  CHECK(columns.size() == 1 && columns[0].column == 1);
  const LeadingColumns leading = choose_leading_columns(tree, columns, false, workers);
  CHECK(leading.of(tree.root()) == 1 && leading.saved == 2 * 3);
  const FieldOrders orders = write_fields(tree, {0, 1}, leading, request.precedence);
  CHECK(orders.of(0)[0] == 1 && saved_by_plan(table, as_plan(request, orders, workers)) == 2 * 3);
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 80; ++i) they_fit_their_nodes_and_keep_their_promise(random);
  the_column_that_begins_alike_leads();
  return 0;
}
