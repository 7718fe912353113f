#include "context/hits.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace vllm_relational::context {

namespace {

using Find = std::pair<int32_t, float>;

void append(std::vector<Find>& found, Hits& hits) {
  const auto by_token = [](const Find& a, const Find& b) { return a.first < b.first; };
  if (!std::is_sorted(found.begin(), found.end(), by_token)) std::sort(found.begin(), found.end(), by_token);
  for (const auto& [token, score] : found) {
    hits.tokens.push_back(token);
    hits.scores.push_back(score);
  }
  hits.offsets.push_back(static_cast<int64_t>(hits.tokens.size()));
}

// NaN first, then the greatest products, of equal ones the first tokens.
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
  // Where k products are NaN, others need not be looked at: but for NaN, which come later and so are not kept either.
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
