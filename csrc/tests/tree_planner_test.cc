// Whole plans: valid under every constraint, never below the plans they are held against, the same on all threads.
#include "planner/tree_planner.h"

#include <limits>
#include <numeric>
#include <random>

#include "check.h"
#include "planner/field_order.h"
#include "random_tables.h"

using namespace vllm_relational;

namespace {

constexpr SearchOptions kSearch{0.0005, 3};

// The plans that a result never falls below: in original order, by both scores, and those of the caller.
std::vector<FieldOrders> baselines(const PlanRequest& request, const std::vector<FieldOrders>& others) {
  const ColumnScores scores = column_scores(request);
  FieldOrder original(at(request.codes.num_columns));
  std::iota(original.begin(), original.end(), 0);
  std::vector<FieldOrders> result = others;
  for (const FieldOrder& order :
       {original, order_by_score(scores.fixed, request.pinned), order_by_score(scores.fixed_v2, request.pinned)}) {
    if (request.precedence.allows(order)) result.push_back({request.codes.num_columns, order, true});
  }
  return result;
}

void check_against_baselines(const Table& table, const std::vector<FieldOrders>& others, const TreePlan& plan) {
  const PlanRequest request = table.request();
  Workers workers(1);
  const int64_t saved = saved_by_plan(table, plan);
  CHECK(measured(request, plan, workers) == saved);
  for (const FieldOrders& orders : baselines(request, others)) {
    const TreePlan baseline = as_plan(request, orders, workers);
    CHECK(measured(request, baseline, workers) == saved_by_plan(table, baseline));
    CHECK(saved >= saved_by_plan(table, baseline));
    if (!table.overlaps.empty() || table.blocks.size > 1) continue;
    CHECK(saved_in_whole_cells(table, plan) >= saved_in_whole_cells(table, baseline));
  }
}

TreePlan checked_plan(const Table& table, const std::vector<FieldOrders>& others, int num_threads) {
  Workers workers(num_threads);
  TreePlan plan = plan_tree(table.request(), kSearch, others, workers);
  check_plan(table, plan);
  check_against_baselines(table, others, plan);
  return plan;
}

// ------------------------------------------------------------------------------------------------- random tables
Table some_table(std::mt19937& random) {
  return random_table(draw(random, 0, 10), draw(random, 0, 120), 50, draw(random, 0, 1) == 0 ? 12 : 1'000'000, random);
}

std::vector<int32_t> pins(int64_t num_columns, int kind, std::mt19937& random) {
  std::vector<int32_t> pinned;
  const auto last = static_cast<int32_t>(num_columns - 1);
  if (kind == 1) return some_columns(num_columns, 3, random);  // anywhere, the middle too
  if (kind == 2 && last > 1) pinned = {0, 1};
  if (kind == 3 && last > 0) pinned = {last};
  if (kind == 4 && last > 0) pinned = {0, last};
  if (kind == 5 && last > 1) pinned = {1};
  return pinned;
}

void pins_and_pairs(std::mt19937& random) {
  Table table = some_table(random);
  for (int kind = 0; kind < 6; ++kind) {
    table.pinned = pins(table.num_columns, kind, random);
    table.before = some_pairs(table.num_columns, draw(random, 0, 1) * draw(random, 1, 6), random);
    checked_plan(table, {}, 2);
    checked_plan(table, {random_orders(table, random), random_orders(table, random)}, 2);
  }
}

void overlaps_and_blocks(std::mt19937& random) {
  Table table = random_table(draw(random, 1, 5), draw(random, 0, 100), 40, 30, random);
  add_texts(table, draw(random, 1, 3), random);
  for (const bool with_overlaps : {false, true}) {
    if (with_overlaps) add_overlaps(table);
    for (const Blocks blocks : {Blocks{0, 1}, Blocks{0, 16}, Blocks{37, 16}}) {
      table.blocks = blocks;
      table.before = some_pairs(table.num_columns, draw(random, 0, 2), random);
      checked_plan(table, {random_orders(table, random)}, 2);
    }
  }
}

// Plans of the caller that break its own constraints are no candidates, however much they save.
void others_that_break_a_pair_do_not_count() {
  Table table{2, 4, {0, 1, 2, 3, 0, 0, 0, 0}, {{1, 1, 1, 1}, {100}}, {}, {}, {{0, 1}}, {}, {}};
  checked_plan(table, {}, 1);
  Workers workers(1);
  const FieldOrders other{2, {1, 0, 1, 0, 1, 0, 1, 0}, false};
  check_plan(table, plan_tree(table.request(), kSearch, {other}, workers));
}

// ---------------------------------------------------------------------------------------------------- the search
// A table for which the local search, its parallel batches included, has something to do.
Table large_table(std::mt19937& random) {
  Table table = random_table(8, 1000, 40, 60, random);
  add_texts(table, 3, random);
  add_overlaps(table);
  table.before = {{1, 4}};
  table.blocks = {21, 16};
  return table;
}

void threads_do_not_change_the_plan(const Table& table) {
  Workers one(1);
  const FieldOrders other = [&] {
    std::mt19937 random(5);
    return random_orders(table, random);
  }();
  const TreePlan expected = plan_tree(table.request(), {0.004, 7}, {other}, one);
  for (const int num_threads : {2, 3, 7}) {
    Workers workers(num_threads);
    const TreePlan plan = plan_tree(table.request(), {0.004, 7}, {other}, workers);
    CHECK(plan.rows == expected.rows);
    CHECK(plan.fields == expected.fields);
  }
}

// Restarts: much more work than the first descent needs, and the plan improves on it.
void restarts_find_more(std::mt19937& random) {
  Workers workers(2);
  int64_t none = 0, some = 0, many = 0;
  for (int i = 0; i < 8; ++i) {
    const Table table = random_table(6, 60, 12, 100, random);
    const int64_t start = saved_by_plan(table, plan_tree(table.request(), {0, 1}, {}, workers));
    const int64_t short_search = saved_by_plan(table, plan_tree(table.request(), {2e-4, 1}, {}, workers));
    const int64_t long_search = saved_by_plan(table, plan_tree(table.request(), {0.01, 1}, {}, workers));
    CHECK(short_search >= start);
    CHECK(long_search >= start);
    none += start, some += short_search, many += long_search;
  }
  CHECK(some > none);
  CHECK(many > some);
}

// Ends by itself on a small table: restarts that gain nothing are the last.
void any_budget_is_taken() {
  std::mt19937 random(2);
  const Table table = random_table(3, 12, 4, 10, random);
  Workers workers(1);
  const int64_t saved = saved_by_plan(table, plan_tree(table.request(), {0.001, 0}, {}, workers));
  for (const double budget : {1e9, 1e300, std::numeric_limits<double>::infinity()}) {
    CHECK(saved_by_plan(table, plan_tree(table.request(), {budget, 0}, {}, workers)) >= saved);
  }
}

struct Interrupted {};

// With this budget the search goes on for minutes unless the interrupt ends it, at its third call.
void is_interrupted(const Table& table, int num_threads) {
  int calls = 0;
  Workers workers(num_threads, [&] {
    if (++calls == 3) throw Interrupted();
  });
  bool interrupted = false;
  try {
    plan_tree(table.request(), {600, 0}, {}, workers);
  } catch (const Interrupted&) {
    interrupted = true;
  }
  CHECK(interrupted);
  CHECK(calls == 3);
}

void an_interrupt_ends_a_long_search(Table table) {
  for (const int num_threads : {1, 3}) is_interrupted(table, num_threads);
}

// Pinned in the middle: the climb. Columns of few values, so that no order is much better than another.
void an_interrupt_ends_a_long_climb(std::mt19937& random) {
  Table table = random_table(100, 2000, 6, 60, random);
  table.pinned = {50};
  is_interrupted(table, 1);
}

// --------------------------------------------------------------------------------------------------- odd tables
// 2^30 - 1 tokens in every cell: the sums need more than 32 bits.
void longest_cells() {
  constexpr int64_t kLongest = (int64_t{1} << 30) - 1;
  Table table{300, 5, std::vector<int32_t>(1500, 0), {}, {}, {}, {}, {}, {}};
  table.lengths.assign(300, {kLongest});
  CHECK(saved_by_plan(table, checked_plan(table, {}, 1)) == 4 * 300 * kLongest);
}

// The first column pinned, each row still shares most in an order of its own (tests/plan/test_tree.py has the words).
void a_pin_at_the_start_leaves_rows_their_orders() {
  Table table{3, 6, {}, {{1}, {10, 10, 10, 10}, {10, 10, 10, 10}}, {}, {}, {}, {0}, {}};
  table.codes = {0, 0, 0, 0, 0, 0, /* claims */ 0, 0, 0, 1, 2, 3, /* evidence */ 0, 1, 2, 3, 3, 3};
  CHECK(saved_by_plan(table, checked_plan(table, {}, 1)) == 5 + 40);
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 10; ++i) pins_and_pairs(random);
  for (int i = 0; i < 8; ++i) overlaps_and_blocks(random);
  others_that_break_a_pair_do_not_count();
  const Table table = large_table(random);
  threads_do_not_change_the_plan(table);
  restarts_find_more(random);
  any_budget_is_taken();
  an_interrupt_ends_a_long_search(table);
  an_interrupt_ends_a_long_climb(random);
  longest_cells();
  a_pin_at_the_start_leaves_rows_their_orders();
  return 0;
}
