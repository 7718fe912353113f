// What holds of every prefix tree, and the best that any could save.
#pragma once

#include <random>
#include <utility>

#include "planner/cluster.h"
#include "planner/prefix_tree.h"
#include "planner/value_groups.h"
#include "random_tables.h"

namespace vllm_relational {

constexpr Choice kChoices[] = {Choice::kClosest, Choice::kGreatestGain, Choice::kBestFactor, Choice::kGreedy,
                               Choice::kOneFactor};

// A table and what clustering it takes; `tree` has every row below the root. The parts view each other, so they stay
// where they are.
struct TreeParts {
  Table table;
  PlanRequest request = table.request();
  Workers workers;
  PlanTable plan_table = make_plan_table(request, workers);
  CodeCounts counts = make_counts(plan_table);
  PrefixTree tree{plan_table};

  explicit TreeParts(Table of, int num_threads = 1) : table(std::move(of)), workers(num_threads) {}
  TreeParts(const TreeParts&) = delete;
  TreeParts& operator=(const TreeParts&) = delete;
};

// Half of them with columns that need others.
Table some_table(int64_t max_columns, int64_t max_rows, std::mt19937& random);

// Every row is below the root, every other inner node has two children or more, prefixes grow downwards, weights and
// the sum saved are as defined.
void check_tree(const PrefixTree& tree);

// What the best of all trees over the rows saves, by trying each: for six rows or fewer.
int64_t max_saving_of_any_tree(const PlanTable& table);

}  // namespace vllm_relational
