// Trees under all that changes them: clustering, regrafting, random moves, heads.
#include "planner/prefix_tree.h"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "planner/cluster.h"
#include "planner/heads.h"
#include "random_tables.h"
#include "planner/regraft.h"
#include "planner/row_order.h"

using namespace vllm_relational;

namespace {

constexpr Choice kChoices[] = {Choice::kClosest, Choice::kGreatestGain, Choice::kBestFactor, Choice::kGreedy,
                               Choice::kOneFactor};

Table some_table(int64_t most_columns, int64_t most_rows, std::mt19937& random) {
  Table table = random_table(draw(random, 1, most_columns), draw(random, 1, most_rows), 50, 1'000'000, random);
  if (draw(random, 0, 1) == 1) table.before = some_pairs(table.num_columns, draw(random, 1, 4), random);
  return table;
}

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

// Every row is below the root, every other inner node has two children or more, prefixes grow downwards.
void check_tree(const PrefixTree& tree) {
  int64_t saved = 0;
  CHECK(check_subtree(tree, tree.root(), saved) == tree.table().num_rows);
  CHECK(tree.saved() == saved);
}

void regraft_never_loses(PrefixTree& tree, std::mt19937& random) {
  const ValueIndex index(tree.table());
  Workers workers(2);
  for (uint64_t pass = 0; pass < 4 && tree.table().num_factors > 0; ++pass) {
    const int64_t before = tree.saved();
    int64_t work = draw(random, 0, 1) == 0 ? 2'000 : 1'000'000;
    CHECK(regraft(tree, index, pass, work, workers) == tree.saved());
    CHECK(tree.saved() >= before);
    check_tree(tree);
    if (pass != 1) continue;
    move_at_random(tree, index, pass, work);
    check_tree(tree);
  }
}

void trees_stay_sound(std::mt19937& random) {
  const Table table = some_table(9, 150, random);
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  CodeCounts counts = make_counts(plan_table);
  for (const Choice choice : kChoices) {
    PrefixTree tree(plan_table);
    cluster_below(tree, tree.root(), choice, counts, workers);
    check_tree(tree);
    regraft_never_loses(tree, random);
  }
  CHECK(std::all_of(counts.begin(), counts.end(), [](int32_t count) { return count == 0; }));
}

// A tree made from a plan, or from one order of the factors, is sound, and improves.
void trees_of_plans_are_sound(std::mt19937& random) {
  const Table table = some_table(9, 150, random);
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  const FieldOrders orders = random_orders(table, random);
  PrefixTree planned(plan_table);
  const std::vector<int32_t> rows = depth_first_rows(request, orders, workers);
  if (table.num_rows > 1) cluster_as_planned(planned, request.codes, orders, rows);
  check_tree(planned);
  if (table.before.empty()) {
    CHECK(planned.saved() >= saved_by_plan(table, as_plan(request, orders, workers)));
  }
  regraft_never_loses(planned, random);
  PrefixTree sorted(plan_table);
  CodeCounts counts = make_counts(plan_table);
  cluster_in_order(sorted, random_order(plan_table.num_factors, random), counts);
  check_tree(sorted);
  regraft_never_loses(sorted, random);
}

// All threads together make the moves that one makes.
void regraft_is_the_same_on_any_number_of_threads(std::mt19937& random) {
  const Table table = random_table(6, 1500, 60, 100, random);
  const PlanRequest request = table.request();
  Workers one(1);
  const PlanTable plan_table = make_plan_table(request, one);
  CodeCounts counts = make_counts(plan_table);
  PrefixTree start(plan_table);
  cluster_below(start, start.root(), Choice::kGreedy, counts, one);
  const ValueIndex index(plan_table);
  PrefixTree expected = start;
  int64_t expected_work = 10'000'000;
  regraft(expected, index, 5, expected_work, one);
  CHECK(expected.saved() > start.saved());
  for (const int num_threads : {2, 3, 7}) {
    Workers workers(num_threads);
    PrefixTree tree = start;
    int64_t work = 10'000'000;
    regraft(tree, index, 5, work, workers);
    CHECK(work == expected_work);
    CHECK(tree.num_nodes() == expected.num_nodes());
    for (int32_t node = 0; node < tree.num_nodes(); ++node) CHECK(tree.parent(node) == expected.parent(node));
  }
}

// Heads only add to what the tree saves, and name columns that may stand there.
void heads_fit_their_nodes(std::mt19937& random) {
  Table table = random_table(draw(random, 1, 5), draw(random, 2, 120), 40, 12, random);
  if (draw(random, 0, 1) == 1) table.before = some_pairs(table.num_columns, 3, random);
  add_texts(table, 2, random);
  add_overlaps(table);
  const PlanRequest request = table.request();
  Workers workers(2);
  const PlanTable plan_table = make_plan_table(request, workers);
  const std::vector<HeadColumn> columns = head_columns(request, plan_table, workers);
  for (const bool branches_count : {false, true}) {
    PrefixTree tree(plan_table);
    CodeCounts counts = make_counts(plan_table);
    cluster_below(tree, tree.root(), Choice::kGreatestGain, counts, workers);
    const Heads heads = choose_heads(tree, columns, branches_count, workers);
    check_tree(tree);
    CHECK(heads.saved >= tree.saved());
    const FieldOrders orders = write_fields(tree, random_order(table.num_columns, random), heads, request.precedence);
    check_plan(table, as_plan(request, orders, workers));
  }
}

void flatten_keeps_all_rows(std::mt19937& random) {
  const Table table = some_table(6, 100, random);
  const PlanRequest request = table.request();
  Workers workers(1);
  const PlanTable plan_table = make_plan_table(request, workers);
  CodeCounts counts = make_counts(plan_table);
  PrefixTree tree(plan_table);
  cluster_below(tree, tree.root(), Choice::kClosest, counts, workers);
  tree.flatten(tree.root());
  CHECK(tree.num_children(tree.root()) == plan_table.num_rows);
  check_tree(tree);
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 30; ++i) trees_stay_sound(random);
  for (int i = 0; i < 60; ++i) trees_of_plans_are_sound(random);
  regraft_is_the_same_on_any_number_of_threads(random);
  for (int i = 0; i < 80; ++i) heads_fit_their_nodes(random);
  for (int i = 0; i < 40; ++i) flatten_keeps_all_rows(random);
  return 0;
}
