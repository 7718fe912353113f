#include "tree_planner.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cluster.h"
#include "field_order.h"
#include "heads.h"
#include "prefix_tree.h"
#include "regraft.h"
#include "row_order.h"

namespace vllm_relational {
namespace {

// What one second of budget buys, measured: about 1,600 million units of regraft's work a second on one core.
constexpr double kWorkPerSecond = 1.6e9;

// Above this, one clustering has to do: the local search makes up for more than the choice among five is worth.
constexpr size_t kManyCells = 4'000'000;
// Up to this, every starting tree is improved.
constexpr size_t kFewCells = 20'000;

size_t at(int64_t index) { return static_cast<size_t>(index); }

// ----------------------------------------------------------------------------------- one order for all rows
FieldOrder as_published(const PlanRequest& request) {
  FieldOrder order(at(request.codes.num_columns));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// By v2's score, by v1's, and as published, as far as the constraints allow.
std::vector<FieldOrder> shared_orders(const PlanRequest& request) {
  const ColumnScores scores = column_scores(request);
  std::vector<FieldOrder> orders;
  for (const auto& score : {scores.fixed_v2, scores.fixed}) {
    FieldOrder order = order_by_score(score, request.pinned);
    request.precedence.repair(order);
    orders.push_back(request.precedence.allows(order) ? std::move(order) : as_published(request));
  }
  orders.push_back(as_published(request));
  return orders;
}

FieldOrders same_for_all(FieldOrder order) {
  const auto num_columns = static_cast<int64_t>(order.size());
  return {num_columns, std::move(order), true};
}

// ------------------------------------------------------------------------------------------ an order for each row
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

class TreeSearch {
 public:
  TreeSearch(const PlanRequest& request, const SearchOptions& options, const std::vector<FieldOrder>& orders,
             Workers& workers)
      : request_(request), options_(options), orders_(orders), workers_(workers),
        table_(make_plan_table(request, workers)) {}

  FieldOrders run() {
    PrefixTree best = best_tree();
    const Heads heads = choose_tree_and_heads(best);
    return write_fields(best, orders_.front(), heads.column_of_node, request_.precedence);
  }

 private:
  // The best of the starting trees, improved. A small table has time to improve them all.
  PrefixTree best_tree() {
    std::vector<PrefixTree> trees = clusterings();
    if (table_.codes.size() <= kFewCells) {
      for (const FieldOrder& order : orders_) trees.push_back(tree_in_order(order));
      for (PrefixTree& tree : trees) improve(tree, options_.budget_seconds / static_cast<double>(trees.size()));
      return best_of(std::move(trees));
    }
    PrefixTree best = best_of(std::move(trees));
    for (const FieldOrder& order : orders_) {
      if (saved_by_order(request_, order) > best.saved()) best = tree_in_order(order);
    }
    improve(best, options_.budget_seconds);
    return best;
  }

  std::vector<PrefixTree> clusterings() {
    std::vector<Choice> choices{Choice::kGreatestGain};
    if (table_.codes.size() <= kManyCells) {
      choices.insert(choices.end(), {Choice::kClosest, Choice::kBestFactor, Choice::kOneFactor, Choice::kGreedy});
    }
    std::vector<PrefixTree> trees(choices.size(), PrefixTree(table_));
    workers_.for_each(choices.size(), [&](size_t i) {
      CodeCounts counts = make_counts();
      cluster_below(trees[i], trees[i].root(), choices[i], counts, workers_);
    });
    return trees;
  }

  PrefixTree tree_in_order(const FieldOrder& order) {
    PrefixTree tree(table_);
    CodeCounts counts = make_counts();
    cluster_in_order(tree, factor_order(table_, order), counts);
    return tree;
  }

  static PrefixTree best_of(std::vector<PrefixTree>&& trees) {
    const auto saves_less = [](const PrefixTree& a, const PrefixTree& b) { return a.saved() < b.saved(); };
    return std::move(*std::max_element(trees.begin(), trees.end(), saves_less));
  }

  // Regrafts until little is gained; what is left of the budget goes into restarts: a few rows are moved at random and
  // the tree regrafted again. Of all trees the best is kept.
  void improve(PrefixTree& tree, double budget_seconds) {
    constexpr int kMostInVain = 32;  // restarts in a row that gain nothing
    auto work = static_cast<int64_t>(budget_seconds * kWorkPerSecond);
    if (work <= 0 || table_.codes.empty()) return;
    const ValueIndex index(table_);
    settle(tree, index, options_.seed, work);
    int in_vain = 0;
    for (uint64_t restart = 1; work > 0 && in_vain < kMostInVain; ++restart, ++in_vain) {
      const uint64_t seed = options_.seed + (restart << 32);
      PrefixTree other = tree;
      move_at_random(other, index, seed, work);
      settle(other, index, seed, work);
      if (other.saved() <= tree.saved()) continue;
      tree = std::move(other);
      in_vain = 0;
    }
  }

  void settle(PrefixTree& tree, const ValueIndex& index, uint64_t seed, int64_t& work) {
    constexpr int kMaxPasses = 64;
    constexpr int64_t kWorthAnotherPass = 20000;  // a pass that gains less than this share of the savings is the last
    int64_t saved = tree.saved();
    for (uint64_t pass = 0; pass < kMaxPasses && work > 0; ++pass) {
      const int64_t before = std::exchange(saved, regraft(tree, index, seed + pass, work, workers_));
      if (saved - before <= saved / kWorthAnotherPass) break;
    }
  }

  // With values that begin alike: an order shared by all rows has larger neighbourhoods, where more cells begin alike.
  Heads choose_tree_and_heads(PrefixTree& best) {
    Heads heads = choose_heads(best, request_);
    if (request_.overlaps.empty()) return heads;
    for (const FieldOrder& order : orders_) {
      PrefixTree tree = tree_in_order(order);
      Heads of_order = choose_heads(tree, request_);
      if (of_order.saved <= heads.saved) continue;
      best = std::move(tree);
      heads = std::move(of_order);
    }
    return heads;
  }

  CodeCounts make_counts() const {
    int32_t most = 0;
    for (const int32_t cardinality : table_.cardinality) most = std::max(most, cardinality);
    return CodeCounts(at(most), 0);
  }

  const PlanRequest& request_;
  const SearchOptions& options_;
  const std::vector<FieldOrder>& orders_;
  Workers& workers_;
  PlanTable table_;
};

// -------------------------------------------------------------------------------------------------- candidates
std::vector<FieldOrders> candidates(const PlanRequest& request, const SearchOptions& options, Workers& workers) {
  const std::vector<FieldOrder> orders = shared_orders(request);
  std::vector<FieldOrders> result;
  if (request.precedence.has_middle_pins()) {
    // A row sorted costs about eight times a cell compared.
    const auto work = static_cast<int64_t>(options.budget_seconds * kWorkPerSecond / 8);
    for (const FieldOrder& order : orders) result.push_back(same_for_all(climb(request, order, work, workers)));
  } else {
    result.push_back(TreeSearch(request, options, orders, workers).run());
  }
  for (const FieldOrder& order : orders) result.push_back(same_for_all(order));
  return result;
}

TreePlan to_plan(const FieldOrders& orders, const std::vector<int32_t>& rows) {
  TreePlan plan{{rows.begin(), rows.end()}, {}};
  plan.fields.reserve(rows.size() * at(orders.num_columns));
  for (const int32_t row : rows) plan.fields.insert(plan.fields.end(), orders.of(row), orders.of(row) + orders.num_columns);
  return plan;
}

std::vector<OverlapOfRanks> overlaps_of(const PlanRequest& request) {
  std::vector<OverlapOfRanks> result;
  for (const ValueOverlaps& overlaps : request.overlaps) result.emplace_back(overlaps.shared);
  return result;
}

}  // namespace

TreePlan plan_tree(const PlanRequest& request, const SearchOptions& options, const std::vector<FieldOrders>& others,
                   Workers& workers) {
  std::vector<FieldOrders> orders = candidates(request, options, workers);
  orders.insert(orders.end(), others.begin(), others.end());
  const std::vector<OverlapOfRanks> overlaps = overlaps_of(request);
  const FieldOrders* best = nullptr;
  std::vector<int32_t> best_rows;
  int64_t most_saved = -1;
  for (const FieldOrders& candidate : orders) {
    std::vector<int32_t> rows = depth_first_rows(request, candidate, workers);
    const int64_t saved = saved_by_rows(request, candidate, rows, overlaps, workers);
    if (saved <= most_saved) continue;
    most_saved = saved;
    best = &candidate;
    best_rows = std::move(rows);
  }
  return to_plan(*best, best_rows);
}

}  // namespace vllm_relational
