// Stable lexicographic order of dictionary-encoded rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace vllm_relational {

// Codes of a table laid out [num_columns][num_rows], one column after the other. The memory is the caller's and must
// outlive the view.
struct CodeTable {
  const int32_t* codes;
  int64_t num_columns;
  int64_t num_rows;

  std::span<const int32_t> column(int64_t c) const {
    return {codes + c * num_rows, static_cast<size_t>(num_rows)};
  }
};

// The rows in ascending order of their codes, compared column by column as `order` lists the columns; rows with equal
// codes keep their order. Work is linear in num_rows * order.size(). Needs: every code >= 0, every entry of `order` a
// column of the table, num_rows < 2^31.
std::vector<int64_t> sort_rows(const CodeTable& table, std::span<const int32_t> order);

}  // namespace vllm_relational
