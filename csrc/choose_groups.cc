// The assignment of items to groups is a facility location problem: opening a group costs its weight once, and each
// item that chooses it gains the weight. Greedy starts, then moves that open and close single groups.
#include <algorithm>
#include <queue>
#include <utility>

#include "value_groups.h"

namespace vllm_relational {
namespace {

size_t at(int32_t index) { return static_cast<size_t>(index); }

class Assignment {
 public:
  explicit Assignment(const ValueGroups& groups)
      : groups_(groups), chosen_(at(groups.num_items), -1), takers_(groups.weight.size(), 0) {}

  int64_t weight_of_choice(int32_t item) const {
    return chosen_[at(item)] < 0 ? 0 : groups_.weight[at(chosen_[at(item)])];
  }

  void move(int32_t item, int32_t group) {
    int32_t& chosen = chosen_[at(item)];
    if (chosen >= 0) --takers_[at(chosen)];
    chosen = group;
    if (group >= 0) ++takers_[at(group)];
  }

  // What opening the group would save, with only the items moving that gain from it. A donor left with one item
  // counts as before: closing it later pays that back.
  int64_t gain_of_opening(int32_t group) const {
    const int64_t weight = groups_.weight[at(group)];
    int64_t gain = -weight;
    for (const int32_t* item = groups_.begin(group); item != groups_.end(group); ++item) {
      gain += std::max<int64_t>(weight - weight_of_choice(*item), 0);
    }
    return gain;
  }

  void open(int32_t group) {
    const int64_t weight = groups_.weight[at(group)];
    for (const int32_t* item = groups_.begin(group); item != groups_.end(group); ++item) {
      if (weight > weight_of_choice(*item)) move(*item, group);
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

  void improve(int64_t most_passes) {
    for (int64_t pass = 0; pass < most_passes; ++pass) {
      bool changed = false;
      for (int32_t g = 0; g < groups_.num_groups(); ++g) {
        if (is_open(g)) {
          changed |= close_if_better(g);
        } else if (gain_of_opening(g) > 0) {
          open(g);
          changed = true;
        }
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

  const ValueGroups& groups_;
  std::vector<int32_t> chosen_;
  std::vector<int32_t> takers_;  // per group: how many items chose it
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

// Opens groups in the order of their gain. Gains only shrink as others open: a stale one goes back into the heap.
template <class Gain, class Open>
void open_greedily(const ValueGroups& groups, const Gain& gain, const Open& open) {
  std::priority_queue<std::pair<int64_t, int32_t>> heap;  // (gain, -group): of equal gains the lower group first
  for (int32_t g = 0; g < groups.num_groups(); ++g) heap.emplace((groups.size(g) - 1) * groups.weight[at(g)], -g);
  while (!heap.empty()) {
    const auto [stale, key] = heap.top();
    heap.pop();
    const int64_t now = gain(-key);
    if (now <= 0) continue;
    if (!heap.empty() && std::pair(now, key) < heap.top()) {
      heap.emplace(now, key);
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
  if (choice != Choice::kGreedy && choice != Choice::kOneFactor) assignment.improve(exchange_passes);
  return std::move(assignment).result();
}

}  // namespace vllm_relational
