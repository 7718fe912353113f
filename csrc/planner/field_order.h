// Orders of the columns that all rows share, and what they save.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/plan_table.h"

namespace vllm_relational {

// What the planners know of a column: the scores of arXiv 2403.05821 (v1: average length / cardinality; the published
// code of v2: average length^2 * (rows / cardinality - 1)).
struct ColumnScores {
  std::vector<double> fixed;
  std::vector<double> fixed_v2;
};
ColumnScores column_scores(const PlanRequest& request);

// Columns by descending score, ties in original order; pinned columns at their original position.
FieldOrder order_by_score(const std::vector<double>& scores, const std::vector<int32_t>& pinned);

// The cell lengths that sorting the rows of the request in that field order saves. Exact.
int64_t saved_by_order(const PlanRequest& request, std::span<const int32_t> order);

// Hill climbing over field orders that the request's precedence allows, from one that it allows: moves one column at a
// time to the position that saves most, pinned ones never. Looks at every k-th row only, so that few more than limits.sampled_rows are;
// `work` counts rows sorted and ends the climb below zero.
FieldOrder climb(const PlanRequest& request, FieldOrder start, int64_t work, Workers& workers);

}  // namespace vllm_relational
