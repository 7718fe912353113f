// What the planners search over: columns that can share something, dictionary codes side by side per row.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "native_limits.h"
#include "planner/precedence.h"
#include "planner/row_sort.h"
#include "workers.h"

namespace vllm_relational {

// Code of a cell that equals no other cell: a column in which the rows below a tree node differ.
constexpr int32_t kNoValue = -2;

// How the values of a column begin alike, from sorting them. rank: of each value (by code) in sorted order.
// shared: by rank, tokens at the start that the value shares with the one before it in sorted order (0 for the first).
struct ValueOverlaps {
  std::span<const int32_t> rank;
  std::span<const int64_t> shared;
};

// A cache of whole blocks: of a prefix of that many tokens, after a header that all rows share, it serves this many.
struct Blocks {
  int64_t header = 0;  // tokens
  int64_t size = 1;    // tokens a block

  int64_t served(int64_t prefix) const { return (header + prefix) / size * size; }
};

// A table to plan. Views: the memory is the caller's and must outlive the search.
// codes: every code >= 0 and an index of its column's lengths. lengths: >= 0, tokens of a cell by code.
struct PlanRequest {
  CodeTable codes;
  std::vector<std::span<const int64_t>> lengths;
  std::vector<int32_t> pinned;  // columns that stay at their original position in every row; ascending
  Precedence precedence;        // which says the same of the pins at both ends of the row
  std::vector<ValueOverlaps> overlaps;  // per column, or empty: cells count whole or not at all
  Blocks blocks;
  Limits limits{};
};

// The request in the form that the search reads. Columns that split the rows in the same way (host_id, host_name) are
// one factor with the sum of their lengths; columns without a repeated value are in no factor, as they share nothing,
// nor are columns that may stand only after such a one.
struct PlanTable {
  int32_t num_rows = 0;
  int32_t num_factors = 0;
  std::vector<std::vector<int32_t>> columns_of;  // per factor, ascending
  std::vector<int32_t> factor_of;                // per column; -1 when it is in none
  std::vector<int32_t> codes;                    // [num_rows][num_factors], dense per factor, by first appearance
  std::vector<int32_t> lengths;                  // [num_rows][num_factors], cut where a row might pass limits.longest_row
  std::vector<int32_t> cardinality;              // per factor
  std::vector<std::vector<int32_t>> needs;       // per factor: those that must be shared for it to count; ascending
  std::vector<int32_t> needy;                    // factors that need any
  Limits limits{};                                 // of the request

  const int32_t* codes_of(int32_t row) const { return codes.data() + offset(row); }
  const int32_t* lengths_of(int32_t row) const { return lengths.data() + offset(row); }

 private:
  size_t offset(int32_t row) const { return static_cast<size_t>(row) * static_cast<size_t>(num_factors); }
};

PlanTable make_plan_table(const PlanRequest& request, Workers& workers);

}  // namespace vllm_relational
