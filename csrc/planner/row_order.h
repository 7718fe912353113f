// The rows in depth-first order of their prefix tree, and what a plan is worth.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/plan_table.h"
#include "planner/plan_writer.h"
#include "planner/value_overlap.h"
#include "workers.h"

namespace vllm_relational {

// Row numbers in lexicographic order of their cells, each row read in its own field order; values by their sorted
// place where the request knows overlaps. So equal leading cells are neighbours, and so are cells that begin alike: a
// prefix that any earlier row has, the row before has too, and a cache needs no more room than for that row.
std::vector<int32_t> depth_first_rows(const PlanRequest& request, const FieldOrders& orders, Workers& workers);

// Tokens that each row has in common with the row before, in blocks served, summed: with a cache that holds the row
// before, or more. overlaps: per column, or empty.
int64_t saved_by_rows(const PlanRequest& request, const FieldOrders& orders, const std::vector<int32_t>& rows,
                      const std::vector<OverlapOfRanks>& overlaps, Workers& workers);

}  // namespace vllm_relational
