// The `tree` planner: a field order per row and a row order that serve the most of a table from the prefix cache.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/plan_writer.h"

namespace vllm_relational {

struct SearchOptions {
  // How much work the local search may do, counted in cells, not in time: the same table, budget and seed give the
  // same plan on every machine, on any number of threads. In seconds of one core; 0 gives the best starting tree,
  // infinity a search that ends when it gains nothing any more.
  double budget_seconds = 0;
  uint64_t seed = 0;
  // Passes and restarts that gain fewer tokens a second of that budget are the last.
  double min_gain = 0;
};

// rows: a permutation, in depth-first order of the prefix tree. fields: [num_rows][num_columns], fields[i] is the
// column order of rows[i].
struct TreePlan {
  std::vector<int64_t> rows;
  std::vector<int32_t> fields;
};

// Saved are the tokens at the start of a row that the row before has too, in the request's blocks: cells, and with
// request.overlaps what the first differing cells begin with alike. The plan never saves less than the original order
// and the two fixed orders of arXiv 2403.05821, nor than any of `others`, plans that the caller has, as far as all
// their rows keep the request's constraints; their rows are put into depth-first order first. With columns pinned in
// the middle of the row the search is over orders that all rows share.
TreePlan plan_tree(const PlanRequest& request, const SearchOptions& options, std::vector<FieldOrders> others,
                   Workers& workers);

}  // namespace vllm_relational
