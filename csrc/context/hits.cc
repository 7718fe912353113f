#include "context/hits.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace vllm_relational::context {

namespace {

using Find = std::pair<int32_t, float>;

// By token; no token stands there twice, so that its place is the number of tokens below it: three times as fast as a sort.
void sort_by_token(std::vector<Find>& found) {
  const auto by_token = [](const Find& a, const Find& b) { return a.first < b.first; };
  if (std::is_sorted(found.begin(), found.end(), by_token)) return;
  const auto [first, last] = std::minmax_element(found.begin(), found.end(), by_token);
  const int32_t low = first->first;
  const auto num_words = static_cast<size_t>(last->first - low) / 64 + 1;
  if (num_words > 8 * found.size()) return std::sort(found.begin(), found.end(), by_token);
  std::vector<uint64_t> marked(num_words);
  std::vector<uint32_t> below(num_words + 1);
  for (const Find& find : found) marked[static_cast<size_t>(find.first - low) / 64] |= uint64_t{1} << ((find.first - low) % 64);
  for (size_t i = 0; i < num_words; ++i) below[i + 1] = below[i] + static_cast<uint32_t>(std::popcount(marked[i]));
  std::vector<Find> sorted(found.size());
  for (const Find& find : found) {
    const auto place = static_cast<size_t>(find.first - low);
    const uint64_t lesser = marked[place / 64] & ((uint64_t{1} << (place % 64)) - 1);
    sorted[below[place / 64] + static_cast<size_t>(std::popcount(lesser))] = find;
  }
  found.swap(sorted);
}

void append(std::vector<Find>& found, Hits& hits) {
  sort_by_token(found);
  for (const auto& [token, score] : found) {
    hits.tokens.push_back(token);
    hits.scores.push_back(score);
  }
  hits.offsets.push_back(static_cast<int64_t>(hits.tokens.size()));
}

// NaN first, then the greatest scores, of equal ones the first tokens.
bool comes_first(const Find& a, const Find& b) {
  const bool a_nan = std::isnan(a.second), b_nan = std::isnan(b.second);
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && a.second != b.second) return a.second > b.second;
  return a.first < b.first;
}

}  // namespace

void WithinBeta::settle() {
  for (; seen_ < found_.size(); ++seen_) best_ = found_[seen_].second > best_ ? found_[seen_].second : best_;
  threshold_ = best_ - beta_;
}

void WithinBeta::finish(Hits& hits) {
  settle();
  std::erase_if(found_, [this](const Find& find) { return find.second < threshold_; });
  append(found_, hits);
}

void Greatest::settle() {
  if (found_.size() >= 2 * k_ + kTile) cut();
}

void Greatest::cut() {
  if (found_.size() <= k_ || k_ == 0) return found_.resize(std::min(found_.size(), k_));
  std::nth_element(found_.begin(), found_.begin() + static_cast<ptrdiff_t>(k_ - 1), found_.end(), comes_first);
  found_.resize(k_);
  const float last = found_.back().second;
  // Where k scores are NaN, others need not be looked at: but for NaN, which come later and so are not kept either.
  threshold_ = std::isnan(last) ? std::numeric_limits<float>::infinity() : last;
}

float Greatest::last() {
  cut();
  return k_ == 0 || found_.size() < k_ ? -std::numeric_limits<float>::infinity()
                                       : std::max_element(found_.begin(), found_.end(), comes_first)->second;
}

void Greatest::finish(Hits& hits) {
  cut();
  append(found_, hits);
}

}  // namespace vllm_relational::context
