// The `tree` planner: a field order per row and a row order that serve the most of a table from the prefix cache.
#pragma once

#include <cstdint>

#include "plan_writer.h"

namespace vllm_relational {

// budget_seconds sets how much work the local search may do, counted in cells, not in time: the same table, budget
// and seed give the same plan on every machine. 0 gives the best of the starting trees.
//
// The plan never saves less than the published order and the two fixed orders of arXiv 2403.05821 (the starting trees
// include them). Saved are the lengths of cells in a row's leading cells that an earlier row has too, with a cache
// without limit. With pinned columns the search is over orders that all rows share.
TreePlan plan_tree(const PlanRequest& request, double budget_seconds, uint64_t seed);

}  // namespace vllm_relational
