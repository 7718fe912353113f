#include "planner/row_sort.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "check.h"

using vllm_relational::CodeTable;
using vllm_relational::sort_rows;

namespace {

using Rows = std::vector<int64_t>;

void equal_rows_keep_their_order() {
  const std::vector<int32_t> codes{1, 0, 1, 0, 1};
  const std::vector<int32_t> order{0};
  CHECK(sort_rows({codes.data(), 1, 5}, order) == (Rows{1, 3, 0, 2, 4}));
}

void first_column_of_the_order_weighs_most() {
  const std::vector<int32_t> codes{0, 0, 1, 1, /* second column */ 1, 0, 1, 0};
  const std::vector<int32_t> original_order{0, 1};
  const std::vector<int32_t> reversed{1, 0};
  CHECK(sort_rows({codes.data(), 2, 4}, original_order) == (Rows{1, 0, 3, 2}));
  CHECK(sort_rows({codes.data(), 2, 4}, reversed) == (Rows{1, 3, 0, 2}));
}

void nothing_to_sort() {
  const std::vector<int32_t> none;
  const std::vector<int32_t> order{0};
  CHECK(sort_rows({none.data(), 1, 0}, order).empty());
  CHECK(sort_rows({none.data(), 0, 3}, none) == (Rows{0, 1, 2}));
}

// Codes over several digits, against std::stable_sort.
void random_codes(int32_t max_code, std::mt19937& random) {
  constexpr int64_t kColumns = 3;
  constexpr int64_t kRows = 997;
  std::uniform_int_distribution<int32_t> code(0, max_code);
  std::vector<int32_t> codes(static_cast<size_t>(kColumns * kRows));
  for (int32_t& c : codes) c = code(random);
  const CodeTable table{codes.data(), kColumns, kRows};
  const std::vector<int32_t> order{2, 0, 1};
  Rows expected(static_cast<size_t>(kRows));
  std::iota(expected.begin(), expected.end(), 0);
  std::stable_sort(expected.begin(), expected.end(), [&](int64_t a, int64_t b) {
    for (const int32_t c : order) {
      const auto column = table.column(c);
      const int32_t left = column[static_cast<size_t>(a)];
      const int32_t right = column[static_cast<size_t>(b)];
      if (left != right) return left < right;
    }
    return false;
  });
  CHECK(sort_rows(table, order) == expected);
}

}  // namespace

int main() {
  equal_rows_keep_their_order();
  first_column_of_the_order_weighs_most();
  nothing_to_sort();
  std::mt19937 random(1);
  for (const int32_t max_code : {0, 1, 7, 2047, 2048, 100000, 2147483647}) random_codes(max_code, random);
  return 0;
}
