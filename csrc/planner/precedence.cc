#include "planner/precedence.h"

#include <algorithm>

namespace vllm_relational {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

// Pairs that say what the pins at both ends of the row mean, added to `needed`; returns the pins in the middle.
std::vector<int32_t> add_pins(std::span<const int32_t> pinned, std::vector<std::vector<bool>>& needed) {
  const auto num_columns = static_cast<int32_t>(needed.size());
  const auto is_pinned = [&](int32_t c) { return std::binary_search(pinned.begin(), pinned.end(), c); };
  int32_t first = 0;
  int32_t last = num_columns - 1;
  for (; first < num_columns && is_pinned(first); ++first) {
    for (int32_t c = first + 1; c < num_columns; ++c) needed[at(c)][at(first)] = true;
  }
  for (; last > first && is_pinned(last); --last) {
    for (int32_t c = 0; c < last; ++c) needed[at(last)][at(c)] = true;
  }
  std::vector<int32_t> middle;
  for (const int32_t c : pinned) {
    if (first <= c && c <= last) middle.push_back(c);
  }
  return middle;
}

// Needs only point to columns that stand earlier originally, so one pass in original order closes them.
void close(std::vector<std::vector<bool>>& needed) {
  for (auto& row : needed) {
    for (size_t c = row.size(); c-- > 0;) {
      if (!row[c]) continue;
      for (size_t i = 0; i < c; ++i) row[i] = row[i] || needed[c][i];
    }
  }
}

// Hands out the columns of an order, each as soon as all that it needs are out, those put off before the others.
class Queue {
 public:
  using Lists = std::vector<std::vector<int32_t>>;

  Queue(const Lists& needs, const Lists& followers, std::span<const int32_t> order)
      : followers_(followers), order_(order.begin(), order.end()), missing_(order.size()) {
    for (size_t c = 0; c < order.size(); ++c) missing_[c] = static_cast<int32_t>(needs[c].size());
  }

  int32_t next() {
    if (num_ready_ > 0) return take_put_off();
    while (missing_[at(order_[position_])] > 0) put_off_.push_back(order_[position_++]);
    return out(order_[position_++]);
  }

 private:
  int32_t take_put_off() {
    const auto ready = std::find_if(put_off_.begin(), put_off_.end(), [&](int32_t c) { return missing_[at(c)] == 0; });
    const int32_t column = *ready;
    put_off_.erase(ready);
    --num_ready_;
    return out(column);
  }

  int32_t out(int32_t column) {
    for (const int32_t c : followers_[at(column)]) {
      if (--missing_[at(c)] > 0) continue;
      num_ready_ += std::find(put_off_.begin(), put_off_.end(), c) != put_off_.end() ? 1 : 0;
    }
    return column;
  }

  const Lists& followers_;
  std::vector<int32_t> order_;
  std::vector<int32_t> missing_;  // per column: needed columns that are not out yet
  std::vector<int32_t> put_off_;  // in their order
  size_t position_ = 0;           // of order_: what comes after has not been looked at
  int num_ready_ = 0;             // columns put off that may go now
};

}  // namespace

Precedence::Precedence(int64_t num_columns, std::span<const std::pair<int32_t, int32_t>> before,
                       std::span<const int32_t> pinned)
    : needs_(at(num_columns)), followers_(at(num_columns)), empty_(before.empty() && pinned.empty()) {
  std::vector<std::vector<bool>> needed(at(num_columns), std::vector<bool>(empty_ ? 0 : at(num_columns), false));
  if (!empty_) middle_pins_ = add_pins(pinned, needed);
  has_middle_pins_ = !middle_pins_.empty();
  for (const auto& [first, second] : before) needed[at(second)][at(first)] = true;
  close(needed);
  for (size_t c = 0; c < needed.size(); ++c) {
    for (size_t i = 0; i < needed[c].size(); ++i) {
      if (!needed[c][i]) continue;
      needs_[c].push_back(static_cast<int32_t>(i));
      followers_[i].push_back(static_cast<int32_t>(c));
    }
  }
}

bool Precedence::allows(std::span<const int32_t> order) const {
  if (empty_) return true;
  std::vector<size_t> position(order.size());
  for (size_t i = 0; i < order.size(); ++i) position[at(order[i])] = i;
  for (size_t c = 0; c < needs_.size(); ++c) {
    for (const int32_t needed : needs_[c]) {
      if (position[at(needed)] > position[c]) return false;
    }
  }
  return std::all_of(middle_pins_.begin(), middle_pins_.end(), [&](int32_t c) { return position[at(c)] == at(c); });
}

void Precedence::repair(std::span<int32_t> order) const {
  if (empty_) return;
  Queue queue(needs_, followers_, order);
  for (int32_t& place : order) place = queue.next();
}

}  // namespace vllm_relational
