#include "tree_planner.h"

#include <algorithm>
#include <random>
#include <set>

#include "check.h"
#include "cluster.h"
#include "field_order.h"
#include "heads.h"
#include "prefix_tree.h"
#include "regraft.h"

using namespace vllm_relational;

namespace {

struct Table {
  int64_t num_columns, num_rows;
  std::vector<int32_t> codes;
  std::vector<std::vector<int64_t>> lengths;

  PlanRequest request() const {
    PlanRequest result{{codes.data(), num_columns, num_rows}, {}, {}, {}};
    for (const auto& column : lengths) result.lengths.push_back(column);
    return result;
  }
};

Table random_table(int64_t num_columns, int64_t num_rows, std::mt19937& random) {
  Table table{num_columns, num_rows, {}, {}};
  for (int64_t c = 0; c < num_columns; ++c) {
    std::uniform_int_distribution<int32_t> code(0, std::uniform_int_distribution<int32_t>(0, 50)(random));
    for (int64_t row = 0; row < num_rows; ++row) table.codes.push_back(code(random));
    table.lengths.emplace_back();
    for (int32_t v = 0; v <= 50; ++v) {
      table.lengths.back().push_back(std::uniform_int_distribution<int64_t>(0, 1'000'000)(random));
    }
  }
  return table;
}

// Straight from the definition: the lengths of leading cells that an earlier row has too.
int64_t saved_by(const Table& table, const TreePlan& plan) {
  std::set<std::vector<int32_t>> seen;
  int64_t saved = 0;
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    std::vector<int32_t> prefix;
    for (int64_t j = 0; j < table.num_columns; ++j) {
      const int32_t column = plan.fields[i * static_cast<size_t>(table.num_columns) + static_cast<size_t>(j)];
      const int32_t code = table.codes[static_cast<size_t>(column * table.num_rows + plan.rows[i])];
      prefix.push_back(column);
      prefix.push_back(code);
      if (!seen.insert(prefix).second) saved += table.lengths[static_cast<size_t>(column)][static_cast<size_t>(code)];
    }
  }
  return saved;
}

void is_permutation(std::vector<int64_t> rows, int64_t num_rows) {
  std::sort(rows.begin(), rows.end());
  CHECK(static_cast<int64_t>(rows.size()) == num_rows);
  for (int64_t i = 0; i < num_rows; ++i) CHECK(rows[static_cast<size_t>(i)] == i);
}

void plans_are_valid_and_beat_one_order(std::mt19937& random) {
  const auto num_columns = std::uniform_int_distribution<int64_t>(0, 12)(random);
  const auto num_rows = std::uniform_int_distribution<int64_t>(0, 200)(random);
  const Table table = random_table(num_columns, num_rows, random);
  PlanRequest request = table.request();
  for (const bool pin : {false, true}) {
    if (pin && num_columns > 1) request.pinned = {1};
    const TreePlan plan = plan_tree(request, 0.01, 0);
    is_permutation(plan.rows, num_rows);
    const int64_t saved = saved_by(table, plan);
    const ColumnScores scores = column_scores(request);
    CHECK(saved >= saved_by_order(request, order_by_score(scores.fixed, request.pinned)));
    CHECK(saved >= saved_by_order(request, order_by_score(scores.fixed_v2, request.pinned)));
  }
}

// Every inner node has two children or more, its prefix holds its parent's, and is in every row below.
void check_tree(const PrefixTree& tree) {
  const int32_t width = tree.table().num_factors;
  int32_t rows = 0;
  std::vector<int32_t> open{tree.root()};
  while (!open.empty()) {
    const int32_t node = open.back();
    open.pop_back();
    rows += tree.is_leaf(node) ? 1 : 0;
    CHECK(tree.is_leaf(node) || node == tree.root() || tree.num_children(node) >= 2);
    for (const int32_t child : tree.children(node)) {
      CHECK(tree.parent(child) == node);
      CHECK(contains(tree.codes(child), tree.codes(node), width));
      open.push_back(child);
    }
  }
  CHECK(rows == tree.table().num_rows);
}

void trees_stay_sound(std::mt19937& random) {
  const Table table = random_table(6, 150, random);
  const PlanTable plan_table = make_plan_table(table.request());
  CodeCounts counts(64, 0);
  for (const Choice choice : {Choice::kClosest, Choice::kGreatestGain, Choice::kBestFactor, Choice::kGreedy}) {
    PrefixTree tree(plan_table);
    cluster_below(tree, tree.root(), choice, counts);
    check_tree(tree);
    const ValueIndex index(plan_table);
    for (uint64_t pass = 0; pass < 4; ++pass) {
      const int64_t before = tree.saved();
      int64_t work = 1'000'000;
      regraft(tree, index, pass, work);
      check_tree(tree);
      CHECK(tree.saved() >= before);
    }
  }
}

// Values of a few letters: the overlaps are those of random texts.
void overlaps_keep_plans_valid(std::mt19937& random) {
  Table table = random_table(4, 120, random);
  PlanRequest request = table.request();
  std::vector<SortedValues> sorted;
  for (auto& lengths : table.lengths) {
    std::vector<int32_t> tokens;
    std::vector<int64_t> offsets{0};
    for (int64_t& length : lengths) {
      length = std::uniform_int_distribution<int64_t>(0, 12)(random);
      for (int64_t i = 0; i < length; ++i) tokens.push_back(std::uniform_int_distribution<int32_t>(0, 1)(random));
      offsets.push_back(static_cast<int64_t>(tokens.size()));
    }
    sorted.push_back(sort_values(tokens, offsets));
  }
  for (const SortedValues& values : sorted) request.overlaps.push_back({values.rank, values.shared});
  is_permutation(plan_tree(request, 0.01, 0).rows, table.num_rows);
  const PlanTable plan_table = make_plan_table(request);
  CodeCounts counts(64, 0);
  PrefixTree tree(plan_table);
  cluster_below(tree, tree.root(), Choice::kGreatestGain, counts);
  const int64_t before = tree.saved();
  CHECK(choose_heads(tree, request).saved >= std::max(before, tree.saved()));
  check_tree(tree);
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 60; ++i) plans_are_valid_and_beat_one_order(random);
  for (int i = 0; i < 20; ++i) trees_stay_sound(random);
  for (int i = 0; i < 40; ++i) overlaps_keep_plans_valid(random);
  return 0;
}
