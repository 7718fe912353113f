#include "tree_planner.h"

#include <algorithm>
#include <numeric>

#include "cluster.h"
#include "field_order.h"
#include "overlap.h"
#include "plan_writer.h"
#include "prefix_tree.h"
#include "regraft.h"

namespace vllm_relational {
namespace {

// What one second of budget buys, measured: about 800 million units of regraft's work a second on one core.
constexpr double kWorkPerSecond = 8e8;

// Above this, one clustering has to do: the local search makes up for more than the choice among five is worth.
constexpr size_t kManyCells = 4'000'000;
// Up to this, every starting tree is improved.
constexpr size_t kFewCells = 20'000;

size_t at(int64_t index) { return static_cast<size_t>(index); }

// ------------------------------------------------------------------------------------- one order for all rows
FieldOrder as_published(const PlanRequest& request) {
  FieldOrder order(at(request.codes.num_columns));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

FieldOrder best_shared_order(const PlanRequest& request, double budget_seconds) {
  const ColumnScores scores = column_scores(request);
  std::vector<FieldOrder> orders{as_published(request), order_by_score(scores.fixed, request.pinned),
                                 order_by_score(scores.fixed_v2, request.pinned)};
  const auto work = static_cast<int64_t>(budget_seconds * kWorkPerSecond / 8);  // sorting a row costs more than a cell
  orders.push_back(climb(request, orders[1], work));
  orders.push_back(climb(request, orders[2], work));
  const auto worse = [&](const FieldOrder& a, const FieldOrder& b) {
    return saved_by_order(request, a) < saved_by_order(request, b);
  };
  return *std::max_element(orders.begin(), orders.end(), worse);
}

TreePlan plan_of_order(const PlanRequest& request, const FieldOrder& order) {
  TreePlan plan{sort_rows(request.codes, order), {}};
  for (size_t i = 0; i < plan.rows.size(); ++i) plan.fields.insert(plan.fields.end(), order.begin(), order.end());
  return plan;
}

// ------------------------------------------------------------------------------------------ an order for each row
CodeCounts make_counts(const PlanTable& table) {
  int32_t most = 0;
  for (const int32_t cardinality : table.cardinality) most = std::max(most, cardinality);
  return CodeCounts(at(most), 0);
}

// The factors in the order in which their first column stands.
std::vector<int32_t> factor_order(const PlanTable& table, const FieldOrder& order) {
  std::vector<int32_t> factor_of(order.size(), -1);
  for (int32_t f = 0; f < table.num_factors; ++f) {
    for (const int32_t column : table.columns_of[at(f)]) factor_of[at(column)] = f;
  }
  std::vector<int32_t> result;
  for (const int32_t column : order) {
    const int32_t f = factor_of[at(column)];
    if (f >= 0 && std::find(result.begin(), result.end(), f) == result.end()) result.push_back(f);
  }
  return result;
}

PrefixTree tree_in_order(const PlanTable& table, const FieldOrder& order, CodeCounts& counts) {
  PrefixTree tree(table);
  cluster_in_order(tree, factor_order(table, order), counts);
  return tree;
}

bool saves_less(const PrefixTree& a, const PrefixTree& b) { return a.saved() < b.saved(); }

std::vector<PrefixTree> clusterings(const PlanTable& table, CodeCounts& counts) {
  std::vector<Choice> choices{Choice::kGreatestGain};
  if (table.codes.size() <= kManyCells) {
    choices.insert(choices.end(), {Choice::kClosest, Choice::kBestFactor, Choice::kOneFactor, Choice::kGreedy});
  }
  std::vector<PrefixTree> trees;
  for (const Choice choice : choices) {
    trees.emplace_back(table);
    cluster_below(trees.back(), trees.back().root(), choice, counts);
  }
  return trees;
}

PrefixTree best_of(std::vector<PrefixTree>&& trees) {
  return std::move(*std::max_element(trees.begin(), trees.end(), saves_less));
}

void improve(PrefixTree& tree, double budget_seconds, uint64_t seed) {
  constexpr int kMaxPasses = 64;
  constexpr int64_t kWorthAnotherPass = 20000;  // a pass that gains less than this share of the savings is the last
  auto work = static_cast<int64_t>(budget_seconds * kWorkPerSecond);
  if (work <= 0) return;
  const ValueIndex index(tree.table());
  for (int pass = 0; pass < kMaxPasses && work > 0; ++pass) {
    const int64_t before = tree.saved();
    regraft(tree, index, seed + static_cast<uint64_t>(pass), work);
    const int64_t saved = tree.saved();
    if (saved - before <= saved / kWorthAnotherPass) break;
  }
}

// The best of the starting trees, improved. A small table has time to improve them all.
PrefixTree search(const PlanRequest& request, const PlanTable& table, const std::vector<FieldOrder>& orders,
                  double budget_seconds, uint64_t seed) {
  CodeCounts counts = make_counts(table);
  std::vector<PrefixTree> trees = clusterings(table, counts);
  if (table.codes.size() <= kFewCells) {
    for (const FieldOrder& order : orders) trees.push_back(tree_in_order(table, order, counts));
    for (PrefixTree& tree : trees) improve(tree, budget_seconds / static_cast<double>(trees.size()), seed);
    return best_of(std::move(trees));
  }
  PrefixTree best = best_of(std::move(trees));
  for (const FieldOrder& order : orders) {
    if (saved_by_order(request, order) > best.saved()) best = tree_in_order(table, order, counts);
  }
  improve(best, budget_seconds, seed);
  return best;
}

// With values that begin alike: an order shared by all rows has larger neighbourhoods, where more cells begin alike.
Heads choose_tree_and_heads(const PlanRequest& request, const std::vector<FieldOrder>& orders, PrefixTree& best) {
  Heads heads = choose_heads(best, request);
  if (request.overlaps.empty()) return heads;
  CodeCounts counts = make_counts(best.table());
  for (const FieldOrder& order : orders) {
    PrefixTree tree = tree_in_order(best.table(), order, counts);
    Heads of_order = choose_heads(tree, request);
    if (of_order.saved <= heads.saved) continue;
    best = std::move(tree);
    heads = std::move(of_order);
  }
  return heads;
}

}  // namespace

TreePlan plan_tree(const PlanRequest& request, double budget_seconds, uint64_t seed) {
  if (!request.pinned.empty()) return plan_of_order(request, best_shared_order(request, budget_seconds));
  const PlanTable table = make_plan_table(request);
  const ColumnScores scores = column_scores(request);
  const std::vector<FieldOrder> orders{order_by_score(scores.fixed_v2, {}), order_by_score(scores.fixed, {}),
                                       as_published(request)};
  PrefixTree best = search(request, table, orders, budget_seconds, seed);
  const Heads heads = choose_tree_and_heads(request, orders, best);
  return write_plan(best, orders.front(), heads.column_of_node, request.codes);
}

}  // namespace vllm_relational
