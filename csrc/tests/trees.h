// What holds of every prefix tree, and the best that any could save.
#pragma once

#include <random>

#include "planner/prefix_tree.h"
#include "planner/value_groups.h"
#include "random_tables.h"

namespace vllm_relational {

constexpr Choice kChoices[] = {Choice::kClosest, Choice::kGreatestGain, Choice::kBestFactor, Choice::kGreedy,
                               Choice::kOneFactor};

// Half of them with columns that need others.
Table some_table(int64_t max_columns, int64_t max_rows, std::mt19937& random);

// Every row is below the root, every other inner node has two children or more, prefixes grow downwards, weights and
// the sum saved are as defined.
void check_tree(const PrefixTree& tree);

// What the best of all trees over the rows saves, by trying each: for six rows or fewer.
int64_t most_that_any_tree_saves(const PlanTable& table);

}  // namespace vllm_relational
