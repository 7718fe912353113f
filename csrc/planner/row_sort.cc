#include "planner/row_sort.h"

#include <algorithm>
#include <numeric>

namespace vllm_relational {
namespace {

// 2,048 buckets: the scatter of one pass keeps that many write positions, which is what fits the first-level cache.
constexpr int kDigitBits = 11;
constexpr uint32_t kDigitMask = (1U << kDigitBits) - 1;

using Permutation = std::vector<int32_t>;

uint32_t digit_of(int32_t code, int shift) { return (static_cast<uint32_t>(code) >> shift) & kDigitMask; }

// Turns the counts of the digits into the position where each digit's first row goes.
void counts_to_starts(std::vector<int32_t>& counts) {
  std::exclusive_scan(counts.begin(), counts.end(), counts.begin(), int32_t{0});
}

// One stable counting-sort pass: moves `rows` to `sorted` by one digit of their codes.
void sort_by_digit(std::span<const int32_t> codes, int shift, const Permutation& rows, Permutation& sorted) {
  std::vector<int32_t> position(size_t{kDigitMask} + 1, 0);
  for (const int32_t code : codes) ++position[digit_of(code, shift)];
  counts_to_starts(position);
  for (const int32_t row : rows) {
    const uint32_t digit = digit_of(codes[static_cast<size_t>(row)], shift);
    sorted[static_cast<size_t>(position[digit]++)] = row;
  }
}

// Sorts by one column, least significant digit first; a column that holds one code only costs one scan.
void sort_by_column(std::span<const int32_t> codes, Permutation& rows, Permutation& scratch) {
  const auto [low, high] = std::minmax_element(codes.begin(), codes.end());
  if (*low == *high) return;
  for (int shift = 0; shift < 32 && (*high >> shift) > 0; shift += kDigitBits) {
    sort_by_digit(codes, shift, rows, scratch);
    rows.swap(scratch);
  }
}

}  // namespace

std::vector<int64_t> sort_rows(const CodeTable& table, std::span<const int32_t> order) {
  Permutation rows(static_cast<size_t>(table.num_rows));
  std::iota(rows.begin(), rows.end(), 0);
  Permutation scratch(rows.size());
  // Last column first: every later pass is stable, so the first column of `order` decides last and weighs most.
  for (size_t i = order.size(); i > 0 && !rows.empty(); --i) {
    sort_by_column(table.column(order[i - 1]), rows, scratch);
  }
  return {rows.begin(), rows.end()};
}

}  // namespace vllm_relational
