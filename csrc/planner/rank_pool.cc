#include "planner/rank_pool.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace vllm_relational {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

}  // namespace

int64_t RankPool::saved(std::vector<int32_t>& ranks) {
  if (is_counted(ranks.size())) {
    count(ranks);
    return saved_by_counts();
  }
  std::sort(ranks.begin(), ranks.end());
  int64_t sum = 0;
  for (size_t i = 1; i < ranks.size(); ++i) {
    sum += ranks[i - 1] == ranks[i] ? lengths_[at(ranks[i])] : overlaps_.between(ranks[i - 1], ranks[i]);
  }
  return sum;
}

void RankPool::fill(std::vector<int32_t> ranks) {
  counted_ = is_counted(ranks.size());
  sorted_ = std::move(ranks);
  if (counted_) {
    count(sorted_);
    gains_by_counts();
  } else {
    std::sort(sorted_.begin(), sorted_.end());
  }
}

int64_t RankPool::gain(int32_t rank) const {
  if (counted_) return gains_[at(rank)];
  const auto here = std::lower_bound(sorted_.begin(), sorted_.end(), rank);
  const auto next = here + 1;
  if (next != sorted_.end() && *next == rank) return lengths_[at(rank)];
  const int64_t above = next == sorted_.end() ? 0 : overlaps_.between(rank, *next);
  return here == sorted_.begin() ? above : std::max(above, overlaps_.between(*(here - 1), rank));
}

void RankPool::count(const std::vector<int32_t>& ranks) {
  counts_.resize(lengths_.size(), 0);
  for (const int32_t rank : ranks) ++counts_[at(rank)];
}

int64_t RankPool::saved_by_counts() {
  const std::span<const int64_t> shared = overlaps_.shared();
  int64_t sum = 0;
  int64_t least = 0;  // shared by the last rank that is there and the one at hand; nothing before the first
  for (size_t rank = 0; rank < counts_.size(); ++rank) {
    least = std::min(least, shared[rank]);
    if (counts_[rank] == 0) continue;
    sum += least + (counts_[rank] - 1) * lengths_[rank];
    least = std::numeric_limits<int64_t>::max();
    counts_[rank] = 0;
  }
  return sum;
}

void RankPool::gains_by_counts() {
  const std::span<const int64_t> shared = overlaps_.shared();
  gains_.resize(lengths_.size());
  int64_t least = 0;
  int64_t* before = nullptr;  // the gain of the last rank that is there, unless it is there twice
  for (size_t rank = 0; rank < counts_.size(); ++rank) {
    least = std::min(least, shared[rank]);
    if (counts_[rank] == 0) continue;
    if (before != nullptr) *before = std::max(*before, least);
    gains_[rank] = counts_[rank] > 1 ? lengths_[rank] : least;
    before = counts_[rank] > 1 ? nullptr : &gains_[rank];
    least = std::numeric_limits<int64_t>::max();
    counts_[rank] = 0;
  }
}

}  // namespace vllm_relational
