// From a prefix tree to the order of the fields in each row.
#pragma once

#include <cstdint>
#include <vector>

#include "field_order.h"
#include "prefix_tree.h"

namespace vllm_relational {

// The field order of each row, by row number: one that all rows share, or one a row.
struct FieldOrders {
  int64_t num_columns = 0;
  std::vector<int32_t> fields;  // [num_columns] or [num_rows][num_columns]
  bool shared = false;

  const int32_t* of(int64_t row) const { return fields.data() + (shared ? 0 : row * num_columns); }
};

// heads: by node, the column that the rest of its rows starts with, or -1.
// First the cells of the path from the root down, inside a node and in the unshared rest as in `rank` (all columns), so
// that siblings tend to start with the same column; then put off where the request's precedence asks for it.
FieldOrders write_fields(const PrefixTree& tree, const FieldOrder& rank, const std::vector<int32_t>& heads,
                         const Precedence& precedence);

}  // namespace vllm_relational
