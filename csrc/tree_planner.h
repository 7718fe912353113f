// The `tree` planner: a field order per row and a row order that serve the most of a table from the prefix cache.
#pragma once

#include <cstdint>

#include "plan_writer.h"

namespace vllm_relational {

// budget_seconds sets how much work the local search may do, counted in cells, not in time: the same table, budget
// and seed give the same plan on every machine. 0 gives the best of the starting trees.
//
// Saved are the lengths of a row's leading cells that an earlier row has too, with a cache without limit; with
// request.overlaps also the tokens that the first differing cells begin with alike. The plan never saves less than the
// published order and the two fixed orders of arXiv 2403.05821, which are among the starting trees (their own overlaps
// are counted where cells directly follow a shared prefix). With pinned columns the search is over orders that all rows
// share, and overlaps are not used.
TreePlan plan_tree(const PlanRequest& request, double budget_seconds, uint64_t seed);

}  // namespace vllm_relational
