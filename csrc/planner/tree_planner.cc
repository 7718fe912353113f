#include "planner/tree_planner.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <numeric>
#include <optional>
#include <utility>

#include "planner/cluster.h"
#include "planner/field_order.h"
#include "planner/leading_columns.h"
#include "planner/prefix_tree.h"
#include "planner/regraft.h"
#include "planner/row_order.h"

namespace vllm_relational {
namespace {

// What one second of budget buys, measured: about 1,600 million units of regraft's work a second on one core.
constexpr double kWorkPerSecond = 1.6e9;
// How often at least a search of restarts looks at whether it still pays.
constexpr int64_t kLooks = 16;

size_t at(int64_t index) { return static_cast<size_t>(index); }

// A budget in units of work; an endless one is as much as 64 bits can count.
int64_t work_of(double budget_seconds, double work_per_second) {
  constexpr double kMax = 0x1p62;
  return static_cast<int64_t>(std::min(budget_seconds * work_per_second, kMax));
}

// ----------------------------------------------------------------------------------- one order for all rows
FieldOrder original_order(const PlanRequest& request) {
  FieldOrder order(at(request.codes.num_columns));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// By v2's score, by v1's, and in original order, as far as the constraints allow.
std::vector<FieldOrder> shared_orders(const PlanRequest& request) {
  const ColumnScores scores = column_scores(request);
  std::vector<FieldOrder> orders;
  for (const auto& score : {scores.fixed_v2, scores.fixed}) {
    FieldOrder order = order_by_score(score, request.pinned);
    request.precedence.repair(order);
    orders.push_back(request.precedence.allows(order) ? std::move(order) : original_order(request));
  }
  orders.push_back(original_order(request));
  return orders;
}

FieldOrders same_for_all(FieldOrder order) {
  const auto num_columns = static_cast<int64_t>(order.size());
  return {num_columns, std::move(order), true};
}

// -------------------------------------------------------------------------------------------------- candidates
// What a plan saves, and in which order of the rows.
struct Worth {
  int64_t saved = -1;
  std::vector<int32_t> rows;
};

// A plan that is there before the search.
struct Given {
  FieldOrders orders;
  Worth worth{};
};

// Keeps the plan that saves most of those it has seen; of equal ones the first.
class Best {
 public:
  Best(const PlanRequest& request, Workers& workers) : request_(request), workers_(workers) {
    for (const ValueOverlaps& overlaps : request.overlaps) overlaps_.emplace_back(overlaps.shared);
  }

  Worth worth(const FieldOrders& orders) const {
    std::vector<int32_t> rows = depth_first_rows(request_, orders, workers_);
    const int64_t saved = saved_by_rows(request_, orders, rows, overlaps_, workers_);
    return {saved, std::move(rows)};
  }

  void see(std::vector<FieldOrders> plans) {
    for (FieldOrders& plan : plans) {
      Worth of_this = worth(plan);
      see(std::move(plan), std::move(of_this));
    }
  }

  void see(std::vector<Given> plans) {
    for (Given& plan : plans) see(std::move(plan.orders), std::move(plan.worth));
  }

  TreePlan plan() && {
    const std::vector<int32_t>& rows = worth_.rows;
    const auto rows_at_a_time = at(request_.limits.rows_at_a_time), width = at(orders_.num_columns);
    TreePlan plan{{rows.begin(), rows.end()}, std::vector<int32_t>(rows.size() * width)};
    workers_.for_each((rows.size() + rows_at_a_time - 1) / rows_at_a_time, [&](size_t task) {
      const size_t end = std::min(rows.size(), (task + 1) * rows_at_a_time);
      for (size_t i = task * rows_at_a_time; i < end; ++i) {
        std::copy_n(orders_.of(rows[i]), width, plan.fields.data() + i * width);
      }
    });
    return plan;
  }

 private:
  void see(FieldOrders orders, Worth worth) {
    if (worth.saved <= worth_.saved) return;
    worth_ = std::move(worth);
    orders_ = std::move(orders);
  }

  const PlanRequest& request_;
  Workers& workers_;
  std::vector<OverlapOfRanks> overlaps_;
  FieldOrders orders_;
  Worth worth_;
};

// ------------------------------------------------------------------------------------------ an order for each row
// The factors in the order in which their first column stands.
std::vector<int32_t> factor_order(const PlanTable& table, const FieldOrder& order) {
  std::vector<int32_t> result;
  for (const int32_t column : order) {
    const int32_t f = table.factor_of[at(column)];
    if (f >= 0 && std::find(result.begin(), result.end(), f) == result.end()) result.push_back(f);
  }
  return result;
}

// Loops that need nothing of each other, run side by side.
class Tasks {
 public:
  void add(size_t count, std::function<void(size_t)> body) {
    for (size_t i = 0; i < count; ++i) tasks_.emplace_back([body, i] { body(i); });
  }

  // In the order added, as threads become free.
  void run(Workers& workers) const {
    workers.for_each(tasks_.size(), [&](size_t i) { tasks_[i](); });
  }

 private:
  std::vector<std::function<void()>> tasks_;
};

class TreeSearch {
 public:
  TreeSearch(const PlanRequest& request, const SearchOptions& options, const std::vector<FieldOrder>& orders,
             Workers& workers)
      : request_(request), options_(options), orders_(orders), workers_(workers),
        table_(make_plan_table(request, workers)), leading_columns_(find_leading_columns(request, table_, workers)) {}

  // The plans of the best starting tree. Finds beside it what the given plans are worth, orders that all rows share, in
  // the order of the constructor's, and others.
  std::vector<FieldOrders> start(const Best& best, std::vector<Given>& shared, std::vector<Given>& others) {
    std::vector<std::optional<PrefixTree>> clustered(choices().size()), planned(others.size());
    std::vector<int64_t> saved(orders_.size());
    const bool will_improve = options_.budget_seconds > 0;
    Tasks tasks;  // the longest first
    tasks.add(clustered.size(), [&](size_t i) { clustered[i] = clustering(choices()[i]); });
    tasks.add(planned.size(), [&](size_t i) {
      others[i].worth = best.worth(others[i].orders);
      planned[i] = tree_as_planned(others[i]);
    });
    tasks.add(will_improve ? 1 : 0, [&](size_t) { index_.emplace(table_); });
    tasks.add(shared.size(), [&](size_t i) {
      if (is_first_of_its_kind(i)) shared[i].worth = best.worth(shared[i].orders);
    });
    tasks.add(is_small() ? 0 : saved.size(), [&](size_t i) { saved[i] = saved_by_order(request_, orders_[i]); });
    tasks.run(workers_);
    for (auto& tree : clustered) trees_.push_back(std::move(*tree));
    for (size_t i = 0; i < orders_.size(); ++i) {
      if (is_small() || saves_more(saved[i])) trees_.push_back(tree_in_order(orders_[i]));
    }
    for (auto& tree : planned) trees_.push_back(std::move(*tree));
    keep_best(is_small() ? trees_.size() : num_cells() <= limits().some_cells ? at(limits().contenders) : 1);
    return !is_small() && will_improve ? std::vector<FieldOrders>{} : plans_of(trees_.front());
  }

  // The plans of the tree that is best once improved: which start leads furthest shows only then, so half of the budget
  // goes to all contenders, half of the rest to the better half of them, and so on.
  std::vector<FieldOrders> improved() {
    if (options_.budget_seconds == 0) return {};
    double seconds = options_.budget_seconds;
    for (; trees_.size() > 1; seconds /= 2) {
      for (PrefixTree& tree : trees_) improve(tree, seconds / 2 / static_cast<double>(trees_.size()));
      keep_best(trees_.size() / 2);
    }
    improve(trees_.front(), seconds);
    return plans_of(trees_.front());
  }

 private:
  const Limits& limits() const { return request_.limits; }
  int64_t num_cells() const { return static_cast<int64_t>(table_.codes.size()); }
  bool is_small() const { return num_cells() <= limits().few_cells; }
  // One clustering has to do: the local search makes up for more than the choice among five is worth.
  bool is_large() const { return num_cells() > limits().many_cells || table_.num_rows > limits().many_rows; }

  // So many, or all if there are fewer. Of equal trees the first.
  void keep_best(size_t num_trees) {
    std::vector<std::pair<int64_t, size_t>> ranking;
    for (size_t i = 0; i < trees_.size(); ++i) ranking.emplace_back(-trees_[i].saved(), i);
    std::sort(ranking.begin(), ranking.end());
    std::vector<PrefixTree> best;
    for (size_t i = 0; i < std::min(num_trees, ranking.size()); ++i) {
      best.push_back(std::move(trees_[ranking[i].second]));
    }
    trees_ = std::move(best);
  }

  // With leading columns, in both ways to choose them. An order shared by all rows has larger neighbourhoods, where more
  // cells begin alike: tried too. Of a large table one tree in one way.
  std::vector<FieldOrders> plans_of(const PrefixTree& tree) {
    if (leading_columns_.empty()) return {write_fields(tree, orders_.front(), {}, request_.precedence)};
    const size_t num_trees = is_large() ? 1 : orders_.size() + 1;
    const size_t num_ways = is_large() ? 1 : 2;
    std::vector<std::optional<PrefixTree>> trees(num_ways * num_trees);
    std::vector<LeadingColumns> leading(trees.size());
    workers_.for_each(trees.size(), [&](size_t i) {
      const size_t order = i % num_trees;
      trees[i] = order == num_trees - 1 ? tree : tree_in_order(orders_[order]);
      leading[i] = choose_leading_columns(*trees[i], leading_columns_, i < num_trees, workers_);
    });
    std::vector<FieldOrders> plans;
    for (size_t first = 0; first < trees.size(); first += num_trees) {
      size_t best = first;
      for (size_t i = first; i < first + num_trees; ++i) best = leading[i].saved >= leading[best].saved ? i : best;
      plans.push_back(write_fields(*trees[best], orders_.front(), leading[best], request_.precedence));
    }
    return plans;
  }

  bool saves_more(int64_t saved) const {
    return std::all_of(trees_.begin(), trees_.end(), [&](const PrefixTree& tree) { return saved > tree.saved(); });
  }

  std::vector<Choice> choices() const {
    if (is_large()) return {Choice::kGreatestGain};
    return {Choice::kGreatestGain, Choice::kClosest, Choice::kBestFactor, Choice::kOneFactor, Choice::kGreedy};
  }

  PrefixTree clustering(Choice choice) {
    PrefixTree tree(table_);
    CodeCounts counts = make_counts(table_);
    cluster_below(tree, tree.root(), choice, counts, workers_);
    return tree;
  }

  // A plan seen twice is no better.
  bool is_first_of_its_kind(size_t order) const {
    const auto end = orders_.begin() + static_cast<std::ptrdiff_t>(order);
    return std::find(orders_.begin(), end, orders_[order]) == end;
  }

  PrefixTree tree_in_order(const FieldOrder& order) const {
    PrefixTree tree(table_);
    CodeCounts counts = make_counts(table_);
    cluster_in_order(tree, factor_order(table_, order), counts);
    return tree;
  }

  PrefixTree tree_as_planned(const Given& plan) const {
    PrefixTree tree(table_);
    if (table_.num_rows > 1) cluster_as_planned(tree, request_.codes, plan.orders, plan.worth.rows);
    return tree;
  }

  // Regrafts until little is gained; what is left of the budget goes into restarts: a few rows are moved at random and
  // the tree regrafted again. Of all trees the best is kept.
  void improve(PrefixTree& tree, double budget_seconds) {
    int64_t work = work_of(budget_seconds, kWorkPerSecond);
    if (work <= 0 || table_.codes.empty()) return;
    const ValueIndex& index = *index_;
    const int64_t max_saved = index.max_saved(), work_between_looks = work / kLooks;
    settle(tree, index, options_.seed, work);
    int64_t in_vain = 0;  // restarts in a row that gain nothing
    Progress progress{tree.saved(), work};
    for (uint64_t restart = 1; work > 0 && in_vain < limits().max_restarts_in_vain; ++restart, ++in_vain) {
      if (tree.saved() >= max_saved) break;
      const bool look = restart % restarts_between_looks() == 0 || progress.work_left - work > work_between_looks;
      if (look && !pays(progress, {tree.saved(), work})) break;
      const uint64_t seed = options_.seed + (restart << 32);
      PrefixTree other = tree;
      std::vector<int32_t> moved = move_at_random(other, index, seed, work);
      regraft_around(other, index, std::move(moved), seed, work, workers_);
      if (other.saved() <= tree.saved()) continue;
      tree = std::move(other);
      in_vain = 0;
    }
  }

  // Of the search so far.
  struct Progress {
    int64_t saved, work_left;
  };

  // Whether what was gained since `before` was worth the work; then `before` is now.
  bool pays(Progress& before, const Progress& now) const {
    const double seconds = static_cast<double>(before.work_left - now.work_left) / kWorkPerSecond;
    const auto gain = static_cast<double>(now.saved - before.saved);
    before = now;
    return gain >= options_.min_gain * seconds;
  }
  uint64_t restarts_between_looks() const { return static_cast<uint64_t>(limits().restarts_between_looks); }

  void settle(PrefixTree& tree, const ValueIndex& index, uint64_t seed, int64_t& work) {
    constexpr int64_t kWorthAnotherPass = 20000;  // a pass that gains less than this share of the savings is the last
    Progress before{tree.saved(), work};
    const auto max_passes = static_cast<uint64_t>(limits().max_passes);
    for (uint64_t pass = 0; pass < max_passes && work > 0; ++pass) {
      const int64_t saved = regraft(tree, index, seed + pass, work, workers_);
      if (saved - before.saved <= saved / kWorthAnotherPass || !pays(before, {saved, work})) break;
    }
  }

  const PlanRequest& request_;
  const SearchOptions& options_;
  const std::vector<FieldOrder>& orders_;
  Workers& workers_;
  PlanTable table_;
  std::vector<LeadingColumn> leading_columns_;
  std::vector<PrefixTree> trees_;  // the contenders, best first
  std::optional<ValueIndex> index_;  // for the local search, if there is any
};

void search_trees(const PlanRequest& request, const SearchOptions& options, const std::vector<FieldOrder>& orders,
                  std::vector<Given> others, Workers& workers, Best& best) {
  std::vector<Given> shared;
  for (const FieldOrder& order : orders) shared.push_back({same_for_all(order)});
  TreeSearch search(request, options, orders, workers);
  best.see(search.start(best, shared, others));
  best.see(search.improved());
  best.see(std::move(shared));
  best.see(std::move(others));
}

void climb_orders(const PlanRequest& request, const SearchOptions& options, const std::vector<FieldOrder>& orders,
                  Workers& workers, Best& best) {
  // A row sorted costs about eight times a cell compared.
  const int64_t work = work_of(options.budget_seconds / static_cast<double>(orders.size()), kWorkPerSecond / 8);
  for (const FieldOrder& order : orders) best.see(std::vector{same_for_all(climb(request, order, work, workers))});
}

bool is_allowed(const PlanRequest& request, const FieldOrders& orders) {
  const int64_t num_orders = orders.shared ? 1 : request.codes.num_rows;
  for (int64_t row = 0; row < num_orders && !request.precedence.empty(); ++row) {
    if (!request.precedence.allows({orders.of(row), at(orders.num_columns)})) return false;
  }
  return true;
}

}  // namespace

TreePlan plan_tree(const PlanRequest& request, const SearchOptions& options, std::vector<FieldOrders> others,
                   Workers& workers) {
  check_max(request.codes.num_rows, request.limits.max_rows, "rows");
  check_max(request.codes.num_rows * request.codes.num_columns, request.limits.max_cells, "cells");
  std::erase_if(others, [&](const FieldOrders& other) { return !is_allowed(request, other); });
  const std::vector<FieldOrder> orders = shared_orders(request);
  Best best(request, workers);
  if (request.precedence.has_middle_pins()) {
    climb_orders(request, options, orders, workers, best);
    for (const FieldOrder& order : orders) best.see(std::vector{same_for_all(order)});
    best.see(std::move(others));
  } else {
    std::vector<Given> given;
    for (FieldOrders& other : others) given.push_back({std::move(other)});
    search_trees(request, options, orders, std::move(given), workers, best);
  }
  return std::move(best).plan();
}

}  // namespace vllm_relational
