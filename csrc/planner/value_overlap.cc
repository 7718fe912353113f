#include "planner/value_overlap.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

namespace vllm_relational {
namespace {

constexpr size_t kBlock = 16;  // values

size_t at(int64_t index) { return static_cast<size_t>(index); }

// Sorts values by their tokens, equal ones by their number. Those that begin alike are sorted by the next token in
// which they differ, so that what they have in common is read once, not at every comparison.
class ValueSorter {
 public:
  ValueSorter(std::span<const int32_t> tokens, std::span<const int64_t> offsets)
      : tokens_(tokens), offsets_(offsets), keyed_(offsets.empty() ? 0 : offsets.size() - 1) {
    for (size_t v = 0; v < keyed_.size(); ++v) keyed_[v].second = static_cast<int32_t>(v);
  }

  std::vector<int32_t> sorted() {
    std::vector<Run> open{{0, keyed_.size(), 0}};
    while (!open.empty()) {
      const Run run = open.back();
      open.pop_back();
      if (run.end - run.begin > 1) split(run, open);
    }
    std::vector<int32_t> result;
    result.reserve(keyed_.size());
    for (const auto& [key, value] : keyed_) result.push_back(value);
    return result;
  }

  std::span<const int32_t> value(int32_t v) const {
    return tokens_.subspan(at(offsets_[at(v)]), at(offsets_[at(v) + 1] - offsets_[at(v)]));
  }

 private:
  struct Run {
    size_t begin, end;  // of values that agree in so many tokens
    size_t depth;
  };
  static constexpr int64_t kEnd = std::numeric_limits<int64_t>::min();  // sorts before every token

  int64_t key(int32_t v, size_t depth) const {
    const auto text = value(v);
    return depth < text.size() ? text[depth] : kEnd;
  }

  void split(Run run, std::vector<Run>& open) {
    run.depth += alike(run);
    for (size_t i = run.begin; i < run.end; ++i) keyed_[i].first = key(keyed_[i].second, run.depth);
    const auto first = keyed_.begin();
    std::sort(first + static_cast<std::ptrdiff_t>(run.begin), first + static_cast<std::ptrdiff_t>(run.end));
    for (size_t begin = run.begin, end = begin; begin < run.end; begin = end) {
      while (end < run.end && keyed_[end].first == keyed_[begin].first) ++end;
      if (keyed_[begin].first != kEnd) open.push_back({begin, end, run.depth + 1});
    }
  }

  // Tokens that all of the run share beyond its depth.
  size_t alike(const Run& run) const {
    auto shared = value(keyed_[run.begin].second).subspan(run.depth);
    for (size_t i = run.begin + 1; i < run.end && !shared.empty(); ++i) {
      const auto other = value(keyed_[i].second).subspan(run.depth);
      const auto differs = std::mismatch(shared.begin(), shared.end(), other.begin(), other.end()).first;
      shared = shared.first(static_cast<size_t>(differs - shared.begin()));
    }
    return shared.size();
  }

  std::span<const int32_t> tokens_;
  std::span<const int64_t> offsets_;
  std::vector<std::pair<int64_t, int32_t>> keyed_;  // values, by the token at the depth of their run
};

}  // namespace

SortedValues sort_values(std::span<const int32_t> tokens, std::span<const int64_t> offsets) {
  ValueSorter sorter(tokens, offsets);
  const std::vector<int32_t> sorted = sorter.sorted();
  const size_t num_values = sorted.size();
  SortedValues result{std::vector<int32_t>(num_values), std::vector<int64_t>(num_values, 0)};
  for (size_t r = 0; r < num_values; ++r) {
    result.rank[at(sorted[r])] = static_cast<int32_t>(r);
    if (r == 0) continue;
    const auto x = sorter.value(sorted[r - 1]), y = sorter.value(sorted[r]);
    result.shared[r] = std::mismatch(x.begin(), x.end(), y.begin(), y.end()).first - x.begin();
  }
  return result;
}

OverlapOfRanks::OverlapOfRanks(std::span<const int64_t> shared) : shared_(shared) {
  std::vector<int64_t> level;
  for (size_t i = 0; i + kBlock <= shared.size(); i += kBlock) level.push_back(least(i, i + kBlock));
  for (size_t width = 1; !level.empty(); width *= 2) {
    min_of_blocks_.push_back(level);
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
  const std::vector<int64_t>& minima = min_of_blocks_[level];
  int64_t result = std::min(minima[first_block], minima[last_block - (size_t{1} << level)]);
  if (begin < first_block * kBlock) result = std::min(result, least(begin, first_block * kBlock));
  if (last_block * kBlock < end) result = std::min(result, least(last_block * kBlock, end));
  return result;
}

}  // namespace vllm_relational
