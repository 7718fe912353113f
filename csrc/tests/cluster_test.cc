// Clustering: every way to choose gives a sound tree, none better than the best of all trees, and an order of the
// factors no worse than sorting by it.
#include "planner/cluster.h"

#include <algorithm>
#include <numeric>

#include "check.h"
#include "planner/field_order.h"
#include "planner/row_order.h"
#include "trees.h"

using namespace vllm_relational;

namespace {

void every_choice_gives_a_sound_tree(std::mt19937& random) {
  const Table table = some_table(9, 150, random);
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  CodeCounts counts = make_counts(plan_table);
  for (const Choice choice : kChoices) {
    PrefixTree tree(plan_table);
    const int64_t before = tree.saved();
    cluster_below(tree, tree.root(), choice, counts, workers);
    check_tree(tree);
    CHECK(tree.saved() >= before);
  }
  CHECK(std::all_of(counts.begin(), counts.end(), [](int32_t count) { return count == 0; }));
}

void none_saves_more_than_the_best_tree(std::mt19937& random) {
  Table table = random_table(draw(random, 1, 4), draw(random, 2, 6), 3, 20, random);
  if (draw(random, 0, 1) == 1) table.before = some_pairs(table.num_columns, 2, random);
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  const int64_t most = max_saving_of_any_tree(plan_table);
  CodeCounts counts = make_counts(plan_table);
  for (const Choice choice : kChoices) {
    PrefixTree tree(plan_table);
    cluster_below(tree, tree.root(), choice, counts, workers);
    check_tree(tree);
    CHECK(tree.saved() <= most);
  }
}

// Rows in two pairs; the second column's pairs are worth more, so all choices but none can miss them.
void the_obvious_pairs_are_found() {
  Table table;
  table.num_columns = 2, table.num_rows = 4;
  table.codes = {0, 1, 0, 1, /* second column */ 0, 0, 1, 1};
  table.lengths = {{3, 3}, {10, 10}};
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  CHECK(max_saving_of_any_tree(plan_table) == 20);
  CodeCounts counts = make_counts(plan_table);
  for (const Choice choice : kChoices) {
    PrefixTree tree(plan_table);
    cluster_below(tree, tree.root(), choice, counts, workers);
    CHECK(tree.saved() == 20);
  }
}

void an_order_saves_what_sorting_by_it_does_or_more(std::mt19937& random) {
  Table table = some_table(6, 100, random);
  table.before.clear();
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  CodeCounts counts = make_counts(plan_table);
  FieldOrder factors = random_order(plan_table.num_factors, random), columns;
  for (const int32_t f : factors) {
    columns.insert(columns.end(), plan_table.columns_of[at(f)].begin(), plan_table.columns_of[at(f)].end());
  }
  PrefixTree tree(plan_table);
  cluster_in_order(tree, factors, counts);
  check_tree(tree);
  CHECK(tree.saved() >= saved_by_order(request, columns));
}

void a_plan_saves_what_it_says_or_more(std::mt19937& random) {
  const Table table = some_table(9, 150, random);
  if (table.num_rows < 2) return;
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  const FieldOrders orders = random_orders(table, random);
  PrefixTree tree(plan_table);
  cluster_as_planned(tree, request.codes, orders, depth_first_rows(request, orders, workers));
  check_tree(tree);
  if (table.before.empty()) CHECK(tree.saved() >= saved_by_plan(table, as_plan(request, orders, workers)));
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 20; ++i) every_choice_gives_a_sound_tree(random);
  for (int i = 0; i < 300; ++i) none_saves_more_than_the_best_tree(random);
  the_obvious_pairs_are_found();
  for (int i = 0; i < 30; ++i) an_order_saves_what_sorting_by_it_does_or_more(random);
  for (int i = 0; i < 30; ++i) a_plan_saves_what_it_says_or_more(random);
  return 0;
}
