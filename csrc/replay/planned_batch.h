// A planned batch as token ids: what the replay of the prefix cache reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "native_limits.h"

namespace vllm_relational {

// The token ids of one column's distinct cells, end to end: code c is tokens[offsets[c], offsets[c + 1]).
struct CellSegments {
  std::span<const int32_t> tokens;
  std::span<const int64_t> offsets;

  std::span<const int32_t> cell(int32_t code) const {
    const auto c = static_cast<size_t>(code);
    const auto begin = static_cast<size_t>(offsets[c]);
    return tokens.subspan(begin, static_cast<size_t>(offsets[c + 1]) - begin);
  }
};

// A planned batch; all memory is the caller's and must outlive the replay. Needs: every row, code and field in range,
// every row of `fields` a permutation of the columns, every prompt shorter than 2^31 tokens.
struct PlannedBatch {
  std::span<const int32_t> header;
  std::vector<CellSegments> columns;
  std::span<const int32_t> tail;
  const int32_t* codes;  // [num_columns][num_rows]
  int64_t num_rows;
  std::span<const int64_t> rows;  // the rows in the order asked
  const int32_t* fields;          // [rows.size()][num_columns], with the strides below, counted in elements
  int64_t field_row_stride;       // 0 when all rows share one order
  int64_t field_column_stride;
  Limits limits{};

  int32_t field(size_t asked, size_t position) const {
    return fields[static_cast<int64_t>(asked) * field_row_stride +
                  static_cast<int64_t>(position) * field_column_stride];
  }
  int32_t code(int32_t column, int64_t row) const { return codes[column * num_rows + row]; }
};

}  // namespace vllm_relational
