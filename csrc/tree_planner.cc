#include "tree_planner.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "cluster.h"
#include "field_order.h"
#include "plan_writer.h"
#include "prefix_tree.h"
#include "regraft.h"

namespace vllm_relational {
namespace {

// What one second of budget buys, measured: about 800 million units of regraft's work a second on one core.
constexpr double kWorkPerSecond = 8e8;

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

void keep_better(std::optional<PrefixTree>& best, PrefixTree&& tree) {
  if (!best || tree.saved() > best->saved()) best.emplace(std::move(tree));
}

PrefixTree best_start(const PlanRequest& request, const PlanTable& table) {
  CodeCounts counts = make_counts(table);
  std::optional<PrefixTree> best;
  for (const Choice choice : {Choice::kGreatestGain, Choice::kClosest, Choice::kBestFactor, Choice::kOneFactor,
                              Choice::kGreedy}) {
    PrefixTree tree(table);
    cluster_below(tree, tree.root(), choice, counts);
    keep_better(best, std::move(tree));
  }
  const ColumnScores scores = column_scores(request);
  for (const FieldOrder& order :
       {as_published(request), order_by_score(scores.fixed, {}), order_by_score(scores.fixed_v2, {})}) {
    PrefixTree tree(table);
    cluster_in_order(tree, factor_order(table, order), counts);
    keep_better(best, std::move(tree));
  }
  return std::move(*best);
}

void improve(PrefixTree& tree, double budget_seconds, uint64_t seed) {
  constexpr int kMaxPasses = 64;
  constexpr int64_t kWorthAnotherPass = 20000;  // a pass that gains less than this share of the savings is the last
  auto work = static_cast<int64_t>(budget_seconds * kWorkPerSecond);
  if (work <= 0) return;
  const ValueIndex index(tree.table());
  for (int pass = 0; pass < kMaxPasses && work > 0; ++pass) {
    const int64_t gained = regraft(tree, index, seed + static_cast<uint64_t>(pass), work);
    if (gained <= tree.saved() / kWorthAnotherPass) break;
  }
}

}  // namespace

TreePlan plan_tree(const PlanRequest& request, double budget_seconds, uint64_t seed) {
  if (!request.pinned.empty()) return plan_of_order(request, best_shared_order(request, budget_seconds));
  const PlanTable table = make_plan_table(request);
  PrefixTree tree = best_start(request, table);
  improve(tree, budget_seconds, seed);
  const FieldOrder rank = order_by_score(column_scores(request).fixed_v2, {});
  return write_plan(tree, rank, request.codes);
}

}  // namespace vllm_relational
