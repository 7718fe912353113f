// Which field comes when, in every row of a plan.
#pragma once

#include <cstdint>
#include <vector>

namespace vllm_relational {

// The field order of each row, by row number: one that all rows share, or one a row.
struct FieldOrders {
  int64_t num_columns = 0;
  std::vector<int32_t> fields;  // [num_columns] or [num_rows][num_columns]
  bool shared = false;

  const int32_t* of(int64_t row) const { return fields.data() + (shared ? 0 : row * num_columns); }
};

}  // namespace vllm_relational
