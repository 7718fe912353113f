// Functional and nearly functional dependencies between two columns.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/row_sort.h"

namespace vllm_relational {

// `dependent` follows from `determinant` in all rows but `num_wrong`: those that differ from the commonest value among
// the rows with their determinant's value (n times the g3 error of Kivinen and Mannila, 1995).
struct PairDependency {
  int32_t determinant;
  int32_t dependent;
  int64_t num_wrong;

  bool operator==(const PairDependency&) const = default;
};

// What a dependency must do to count; vllm_relational/plan/dependencies.py gives the reasons. All shares are 0 to 1.
struct DependencyLimits {
  double max_wrong;       // share of the rows that may be wrong
  double max_unexplained; // share that may be wrong of the rows that differ from the dependent's commonest value
  double max_distinct;    // distinct values of a determinant as a share of the rows; and, as a share of the rows that
                           // differ from the dependent's commonest value, the determinant's values that say otherwise
};

// All pairs of columns within the limits, by determinant, then by dependent. Needs codes from 0 up, below 2^31 - 1.
// Time: most pairs are given up after reading about `max_wrong` of the rows, which is exact: no rows are sampled.
// Memory: 8 bytes a row, 4 bytes a code up to the greatest.
std::vector<PairDependency> find_pair_dependencies(const CodeTable& table, const DependencyLimits& limits);

}  // namespace vllm_relational
