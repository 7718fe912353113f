#include "value_overlap.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace vllm_relational {
namespace {

constexpr size_t kBlock = 16;  // values

size_t at(int64_t index) { return static_cast<size_t>(index); }

}  // namespace

SortedValues sort_values(std::span<const int32_t> tokens, std::span<const int64_t> offsets) {
  const size_t num_values = offsets.empty() ? 0 : offsets.size() - 1;
  const auto value = [&](int32_t v) {
    return tokens.subspan(at(offsets[at(v)]), at(offsets[at(v) + 1] - offsets[at(v)]));
  };
  std::vector<int32_t> sorted(num_values);
  std::iota(sorted.begin(), sorted.end(), 0);
  std::sort(sorted.begin(), sorted.end(), [&](int32_t a, int32_t b) {
    const auto x = value(a), y = value(b);
    const auto [i, j] = std::mismatch(x.begin(), x.end(), y.begin(), y.end());
    if (i == x.end() || j == y.end()) return x.size() != y.size() ? x.size() < y.size() : a < b;
    return *i < *j;
  });
  SortedValues result{std::vector<int32_t>(num_values), std::vector<int64_t>(num_values, 0)};
  for (size_t r = 0; r < num_values; ++r) {
    result.rank[at(sorted[r])] = static_cast<int32_t>(r);
    if (r == 0) continue;
    const auto x = value(sorted[r - 1]), y = value(sorted[r]);
    result.shared[r] = std::mismatch(x.begin(), x.end(), y.begin(), y.end()).first - x.begin();
  }
  return result;
}

OverlapOfRanks::OverlapOfRanks(std::span<const int64_t> shared) : shared_(shared) {
  std::vector<int64_t> level;
  for (size_t i = 0; i + kBlock <= shared.size(); i += kBlock) level.push_back(least(i, i + kBlock));
  for (size_t width = 1; !level.empty(); width *= 2) {
    least_of_blocks_.push_back(level);
    if (level.size() <= width) break;
    for (size_t i = 0; i + width < level.size(); ++i) level[i] = std::min(level[i], level[i + width]);
    level.resize(level.size() - width);
  }
}

int64_t OverlapOfRanks::least(size_t begin, size_t end) const {
  return *std::min_element(shared_.begin() + static_cast<std::ptrdiff_t>(begin),
                           shared_.begin() + static_cast<std::ptrdiff_t>(end));
}

int64_t OverlapOfRanks::between(int32_t low, int32_t high) const {
  const size_t begin = at(low) + 1;
  const size_t end = at(high) + 1;
  const size_t first_block = (begin + kBlock - 1) / kBlock;
  const size_t last_block = end / kBlock;  // one past
  if (first_block >= last_block) return least(begin, end);
  const size_t level = static_cast<size_t>(std::bit_width(last_block - first_block) - 1);
  const std::vector<int64_t>& minima = least_of_blocks_[level];
  int64_t result = std::min(minima[first_block], minima[last_block - (size_t{1} << level)]);
  if (begin < first_block * kBlock) result = std::min(result, least(begin, first_block * kBlock));
  if (last_block * kBlock < end) result = std::min(result, least(last_block * kBlock, end));
  return result;
}

}  // namespace vllm_relational
