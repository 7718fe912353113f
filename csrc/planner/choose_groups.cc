// The assignment of items to groups is a facility location problem: opening a group costs its weight once, and each
// item that chooses it gains the weight. Greedy starts, then moves that open and close single groups.
#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <utility>

#include "planner/value_groups.h"

namespace vllm_relational {
namespace {

size_t at(int32_t index) { return static_cast<size_t>(index); }

// Looks at a group only when something it depends on has changed since the last look: there are more groups than items,
// and most of them stay closed.
class Assignment {
 public:
  explicit Assignment(const ValueGroups& groups)
      : groups_(groups), chosen_(at(groups.num_items), -1), weight_of_choice_(at(groups.num_items), 0),
        takers_(groups.weight.size(), 0) {}

  void move(int32_t item, int32_t group) {
    int32_t& chosen = chosen_[at(item)];
    if (chosen == group) return;
    if (chosen >= 0 && --takers_[at(chosen)] == 0) opened_or_closed(chosen);
    if (group >= 0 && ++takers_[at(group)] == 1) opened_or_closed(group);
    chosen = group;
    weight_of_choice_[at(item)] = group < 0 ? 0 : groups_.weight[at(group)];
    if (!changed_.empty()) groups_of_item_changed(item);
  }

  // What opening the group would save, with only the items moving that gain from it. A donor left with one item
  // counts as before: closing it later pays that back.
  int64_t gain_of_opening(int32_t group) const {
    const int64_t weight = groups_.weight[at(group)];
    int64_t gain = -weight;
    for (const int32_t* item = groups_.begin(group); item != groups_.end(group); ++item) {
      gain += std::max<int64_t>(weight - weight_of_choice_[at(*item)], 0);
    }
    return gain;
  }

  void open(int32_t group) {
    const int64_t weight = groups_.weight[at(group)];
    for (const int32_t* item = groups_.begin(group); item != groups_.end(group); ++item) {
      if (weight > weight_of_choice_[at(*item)]) move(*item, group);
    }
  }

  // Closes the group if its items save as much elsewhere. Returns whether it did.
  bool close_if_better(int32_t group) {
    int64_t gain = groups_.weight[at(group)];
    for (const int32_t* item = groups_.begin(group); item != groups_.end(group) && gain > 0; ++item) {
      if (chosen_[at(*item)] != group) continue;
      const int32_t other = next_best(*item);
      gain -= groups_.weight[at(group)] - (other < 0 ? 0 : groups_.weight[at(other)]);
    }
    if (gain <= 0) return false;
    for (const int32_t* item = groups_.begin(group); item != groups_.end(group); ++item) {
      if (chosen_[at(*item)] == group) move(*item, next_best(*item));
    }
    return true;
  }

  bool is_open(int32_t group) const { return takers_[at(group)] > 0; }

  // Moves that open and close single groups. closed_are_settled: what is closed now would gain nothing by opening.
  void improve(int64_t max_passes, bool closed_are_settled) {
    changed_.resize(groups_.weight.size());
    for (int32_t g = 0; g < groups_.num_groups(); ++g) changed_[at(g)] = !closed_are_settled || is_open(g);
    for (int64_t pass = 0; pass < max_passes; ++pass) {
      bool changed = false;
      for (int32_t g = 0; g < groups_.num_groups(); ++g) {
        if (!changed_[at(g)]) continue;
        changed_[at(g)] = false;
        changed |= is_open(g) ? close_if_better(g) : open_if_better(g);
      }
      if (!changed) break;
    }
  }

  // Groups with one item are no groups.
  std::vector<int32_t> result() && {
    for (int32_t& chosen : chosen_) {
      if (chosen >= 0 && takers_[at(chosen)] < 2) chosen = -1;
    }
    return std::move(chosen_);
  }

  int32_t choice_of(int32_t item) const { return chosen_[at(item)]; }

 private:
  bool open_if_better(int32_t group) {
    if (gain_of_opening(group) <= 0) return false;
    open(group);
    return true;
  }

  // The heaviest other open group of the item, or -1.
  int32_t next_best(int32_t item) const {
    int32_t best = -1;
    const int32_t* of_item = groups_.groups_of(item);
    for (int32_t j = 0; j < groups_.width; ++j) {
      const int32_t g = of_item[j];
      if (g < 0 || g == chosen_[at(item)] || !is_open(g)) continue;
      if (best < 0 || groups_.weight[at(g)] > groups_.weight[at(best)]) best = g;
    }
    return best;
  }

  // Groups that the items of this one may have as their next best.
  void opened_or_closed(int32_t group) {
    if (changed_.empty()) return;
    for (const int32_t* item = groups_.begin(group); item != groups_.end(group); ++item) groups_of_item_changed(*item);
  }

  void groups_of_item_changed(int32_t item) {
    const int32_t* of_item = groups_.groups_of(item);
    for (int32_t j = 0; j < groups_.width; ++j) {
      if (of_item[j] >= 0) changed_[at(of_item[j])] = true;
    }
  }

  const ValueGroups& groups_;
  std::vector<int32_t> chosen_;
  std::vector<int64_t> weight_of_choice_;  // per item; 0 where it chose none
  std::vector<int32_t> takers_;            // per group: how many items chose it
  std::vector<uint8_t> changed_;           // per group: since the last look at it; empty before the first
};

void take_closest(const ValueGroups& groups, Assignment& assignment) {
  for (int32_t item = 0; item < groups.num_items; ++item) {
    int32_t best = -1;
    for (int32_t j = 0; j < groups.width; ++j) {
      const int32_t g = groups.groups_of(item)[j];
      if (g >= 0 && (best < 0 || groups.weight[at(g)] > groups.weight[at(best)])) best = g;
    }
    assignment.move(item, best);
  }
}

void take_best_factor(const ValueGroups& groups, Assignment& assignment) {
  std::vector<int64_t> saved(at(groups.width), 0);
  for (int32_t g = 0; g < groups.num_groups(); ++g) {
    saved[at(groups.factor_of[at(g)])] += (groups.size(g) - 1) * groups.weight[at(g)];
  }
  if (saved.empty()) return;
  const auto best = std::max_element(saved.begin(), saved.end()) - saved.begin();
  for (int32_t item = 0; item < groups.num_items; ++item) assignment.move(item, groups.groups_of(item)[best]);
}

int64_t saved_among_the_rest(const ValueGroups& groups, const Assignment& assignment, int32_t group) {
  int64_t rest = 0;
  for (const int32_t* item = groups.begin(group); item != groups.end(group); ++item) {
    rest += assignment.choice_of(*item) < 0 ? 1 : 0;
  }
  return (rest - 1) * groups.weight[at(group)];
}

// (gain, -group): of equal gains the lower group goes first.
using Ranked = std::pair<int64_t, int32_t>;

// All groups by what they save when all items take them, greatest first.
std::vector<Ranked> by_full_gain(const ValueGroups& groups) {
  std::vector<Ranked> result;
  result.reserve(groups.weight.size());
  for (int32_t g = 0; g < groups.num_groups(); ++g) {
    result.emplace_back((groups.size(g) - 1) * groups.weight[at(g)], -g);
  }
  std::sort(result.begin(), result.end(), std::greater<>());
  return result;
}

// Opens groups in the order of their gain. Gains only shrink as others open: a stale one goes into the heap.
template <class Gain, class Open>
void open_greedily(const ValueGroups& groups, const Gain& gain, const Open& open) {
  const std::vector<Ranked> fresh = by_full_gain(groups);
  std::priority_queue<Ranked> stale;
  constexpr Ranked kNone{std::numeric_limits<int64_t>::min(), 0};
  for (auto next = fresh.begin(); next != fresh.end() || !stale.empty();) {
    const bool is_fresh = next != fresh.end() && (stale.empty() || stale.top() < *next);
    const int32_t key = is_fresh ? (next++)->second : stale.top().second;
    if (!is_fresh) stale.pop();
    const int64_t now = gain(-key);
    if (now <= 0) continue;
    const Ranked best_other = std::max(next != fresh.end() ? *next : kNone, stale.empty() ? kNone : stale.top());
    if (Ranked(now, key) < best_other) {
      stale.emplace(now, key);
    } else {
      open(-key);
    }
  }
}

void take_greatest_gain(const ValueGroups& groups, Assignment& assignment) {
  open_greedily(
      groups, [&](int32_t g) { return assignment.gain_of_opening(g); }, [&](int32_t g) { assignment.open(g); });
}

void take_greedily(const ValueGroups& groups, Assignment& assignment) {
  open_greedily(
      groups, [&](int32_t g) { return saved_among_the_rest(groups, assignment, g); },
      [&](int32_t g) {
        for (const int32_t* item = groups.begin(g); item != groups.end(g); ++item) {
          if (assignment.choice_of(*item) < 0) assignment.move(*item, g);
        }
      });
}

}  // namespace

std::vector<int32_t> choose_groups(const ValueGroups& groups, Choice choice, int64_t exchange_passes) {
  Assignment assignment(groups);
  if (choice == Choice::kClosest) take_closest(groups, assignment);
  if (choice == Choice::kGreatestGain) take_greatest_gain(groups, assignment);
  if (choice == Choice::kBestFactor || choice == Choice::kOneFactor) take_best_factor(groups, assignment);
  if (choice == Choice::kGreedy) take_greedily(groups, assignment);
  if (choice != Choice::kGreedy && choice != Choice::kOneFactor) {
    assignment.improve(exchange_passes, choice == Choice::kGreatestGain);
  }
  return std::move(assignment).result();
}

}  // namespace vllm_relational
