#include "planner/regraft.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

#include "planner/random.h"

namespace vllm_relational {
namespace {

// What finding a row costs beside comparing its cells, in cells: measured.
constexpr int32_t kFixedWork = 16;
// And on top where the table outgrows the caches, so that a row is fetched from memory.
constexpr int32_t kFetchWork = 192;

size_t at(int32_t index) { return static_cast<size_t>(index); }

// Where a subtree would share most.
struct Place {
  int32_t node = -1;
  int64_t weight = 0;  // of what it shares there
};

// What a subtree would share with the place, or with a row.
int64_t weight_at(const PrefixTree& tree, int32_t node, int32_t place) {
  return shared_weight(tree.table(), tree.codes(node), tree.codes(place), tree.lengths(node));
}

// Reads the tree only: one for each thread's task.
class PlaceFinder {
 public:
  PlaceFinder(const PrefixTree& tree, const ValueIndex& index)
      : tree_(tree), index_(index), limits_(tree.table().limits), width_(tree.table().num_factors),
        work_per_comparison_(width_ + kFixedWork + (is_in_cache() ? 0 : kFetchWork)) {}

  // A place where `node` shares more than `now`; its node is -1 if none was found.
  Place best_place(int32_t node, int64_t now, uint64_t random) {
    Place best{-1, now};
    partners_.clear();
    for (int32_t f = 0; f < width_; ++f) {
      const int32_t code = tree_.codes(node)[f];
      if (code < 0) continue;
      work_ += kFixedWork;
      const ValueIndex::Rows rows = index_.rows_of(f, code);
      const int64_t most = rows.size <= limits_.partners ? limits_.partners : limits_.partners_of_frequent;
      const auto tries = static_cast<int32_t>(std::min<int64_t>(rows.size, most));
      auto next = rows.size == tries ? 0 : static_cast<int32_t>(next_random(random) % static_cast<uint64_t>(rows.size));
      for (int32_t i = 0; i < tries; ++i, next = next + 1 == rows.size ? 0 : next + 1) {
        partners_.push_back(rows.first[next]);
        __builtin_prefetch(tree_.codes(partners_.back()));  // all are fetched in the time of a few
      }
    }
    for (const int32_t row : partners_) try_partner(node, row, best);
    descend(node, best);
    return best;
  }

  int64_t work() const { return work_; }

 private:
  bool is_in_cache() const { return static_cast<int64_t>(tree_.table().codes.size()) <= limits_.cells_in_cache; }

  void try_partner(int32_t node, int32_t row, Place& best) {
    if (row == node) return;
    work_ += work_per_comparison_;
    if (weight_at(tree_, node, row) <= best.weight) return;
    const int32_t place = deepest_place(node, row);
    if (place < 0) return;
    const int64_t weight = weight_at(tree_, node, place);
    if (weight > best.weight) best = {place, weight};
  }

  // Looks at all children of the root, and again at those of the heaviest child whose prefix the node has, as long as
  // there are few: where all values are frequent, rows tried at random seldom are the ones that share most.
  void descend(int32_t node, Place& best) {
    for (int32_t above = tree_.root(); above >= 0 && tree_.num_children(above) <= limits_.children_looked_at;) {
      int32_t below = -1;
      for (int32_t c = tree_.first_child(above); c >= 0; c = tree_.next_sibling(c)) {
        if (c == node) continue;
        work_ += work_per_comparison_;
        const int64_t weight = weight_at(tree_, node, c);
        if (weight > best.weight) best = {c, weight};
        const bool heavier = below < 0 || tree_.weight(c) > tree_.weight(below);
        if (!tree_.is_leaf(c) && heavier && contains(tree_.codes(node), tree_.codes(c), width_)) below = c;
      }
      above = below;
    }
  }

  // The lowest ancestor of `row` (or the row) whose parent's prefix `node` has; -1 inside the subtree of `node`.
  int32_t deepest_place(int32_t node, int32_t row) {
    int32_t place = row;
    for (int32_t above = row; above != tree_.root();) {
      if (above == node) return -1;
      const int32_t parent = tree_.parent(above);
      work_ += work_per_comparison_;
      if (place == above && !contains(tree_.codes(node), tree_.codes(parent), width_)) place = parent;
      above = parent;
    }
    return place;
  }

  const PrefixTree& tree_;
  const ValueIndex& index_;
  const Limits& limits_;
  int32_t width_;
  int32_t work_per_comparison_;
  int64_t work_ = 0;
  std::vector<int32_t> partners_;  // rows to try
};

// The lowest ancestor of `place` (or the place) whose parent's prefix a detached `node` has.
int32_t deepest_open_place(const PrefixTree& tree, int32_t node, int32_t place) {
  while (!contains(tree.codes(node), tree.codes(tree.parent(place)), tree.table().num_factors)) {
    place = tree.parent(place);
  }
  return place;
}

// The node, its parent and some of its siblings.
void touch_around(const PrefixTree& tree, int32_t node, std::vector<int32_t>& touched) {
  const int32_t parent = tree.parent(node);
  if (parent < 0) return;
  touched.insert(touched.end(), {node, parent});
  int64_t left = tree.table().limits.siblings_touched;
  for (int32_t c = tree.first_child(parent); c >= 0 && left > 0; c = tree.next_sibling(c), --left) touched.push_back(c);
}

class Regrafter {
 public:
  Regrafter(PrefixTree& tree, const ValueIndex& index, uint64_t seed, Workers& workers)
      : tree_(tree), index_(index), limits_(tree.table().limits), seed_(seed), workers_(workers) {}

  // New nodes may take the numbers of dissolved ones; a node is visited at most once a pass by its number.
  void run(int64_t& work) {
    std::vector<int32_t> nodes(at(tree_.num_nodes()));
    std::iota(nodes.begin(), nodes.end(), 0);
    pass(nodes, work);
  }

  void run_around(std::vector<int32_t> nodes, int64_t& work) {
    for (int64_t round = 0; round < limits_.max_passes && work > 0 && !nodes.empty(); ++round, ++seed_) {
      std::sort(nodes.begin(), nodes.end());
      nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
      touched_.clear();
      pass(nodes, work);
      nodes.swap(touched_);
    }
  }

 private:
  bool is_in_use(int32_t node) const { return node != tree_.root() && tree_.parent(node) >= 0; }

  void pass(std::span<const int32_t> nodes, int64_t& work) {
    const auto at_a_time = static_cast<size_t>(limits_.nodes_at_a_time);
    for (size_t begin = 0; begin < nodes.size() && work > 0; begin += std::min(at_a_time, nodes.size() - begin)) {
      const auto some = nodes.subspan(begin, std::min(at_a_time, nodes.size() - begin));
      work -= find_places(some);
      for (size_t i = 0; i < some.size(); ++i) move_if_better(some[i], places_[i].node);
    }
  }

  // Returns the work done.
  int64_t find_places(std::span<const int32_t> nodes) {
    places_.assign(nodes.size(), {});
    const size_t per_task = std::min(static_cast<size_t>(limits_.nodes_per_task), nodes.size());
    std::vector<int64_t> work((nodes.size() - 1) / per_task + 1, 0);
    workers_.for_each(work.size(), [&](size_t task) {
      PlaceFinder finder(tree_, index_);
      for (size_t i = task * per_task; i < std::min((task + 1) * per_task, nodes.size()); ++i) {
        if (!is_in_use(nodes[i])) continue;
        const uint64_t random = seed_ ^ (static_cast<uint64_t>(nodes[i]) << 32);
        places_[i] = finder.best_place(nodes[i], weight_now(nodes[i]), random);
      }
      work[task] = finder.work();
    });
    return std::accumulate(work.begin(), work.end(), int64_t{0});
  }

  void move_if_better(int32_t node, int32_t place) {
    if (place < 0 || !is_still_better(node, place)) return;
    const int32_t parent = tree_.parent(node);
    const int32_t sibling = tree_.first_child(parent) != node ? tree_.first_child(parent) : tree_.next_sibling(node);
    tree_.detach(node);
    // With the node gone prefixes may have grown beyond what it has, so that it gets less there than it had before:
    // then back to its sibling.
    const int32_t there = deepest_open_place(tree_, node, place);
    const int32_t back = deepest_open_place(tree_, node, sibling);
    tree_.attach(node, weight_at(tree_, node, there) > weight_at(tree_, node, back) ? there : back);
    for (const int32_t beside : {node, sibling}) touch_around(tree_, beside, touched_);
  }

  int64_t weight_now(int32_t node) const { return tree_.weight(tree_.parent(node)); }

  // The tree has changed since the place was found: moves of other nodes.
  bool is_still_better(int32_t node, int32_t place) const {
    if (!is_in_use(node) || !is_in_use(place)) return false;
    for (int32_t above = place; above != tree_.root(); above = tree_.parent(above)) {
      if (above == node) return false;
    }
    if (!contains(tree_.codes(node), tree_.codes(tree_.parent(place)), tree_.table().num_factors)) return false;
    return weight_at(tree_, node, place) > weight_now(node);
  }

  PrefixTree& tree_;
  const ValueIndex& index_;
  const Limits& limits_;
  uint64_t seed_;
  Workers& workers_;
  std::vector<Place> places_;     // of the nodes at hand
  std::vector<int32_t> touched_;  // nodes beside which others came or went
};

}  // namespace

ValueIndex::ValueIndex(const PlanTable& table) {
  int64_t num_values = 0;
  for (const int32_t cardinality : table.cardinality) {
    first_value_.push_back(num_values);
    num_values += cardinality;
  }
  start_.assign(static_cast<size_t>(num_values) + 2, 0);  // one to spare: starts move up as values fill
  const auto value_of = [&](int32_t row, int32_t f) {
    return static_cast<size_t>(first_value_[at(f)] + table.codes_of(row)[f]);
  };
  for (int32_t row = 0; row < table.num_rows; ++row) {
    for (int32_t f = 0; f < table.num_factors; ++f) ++start_[value_of(row, f) + 2];
  }
  std::partial_sum(start_.begin(), start_.end(), start_.begin());
  rows_.resize(table.codes.size());
  std::vector<bool> seen(static_cast<size_t>(num_values), false);
  for (int32_t row = 0; row < table.num_rows; ++row) {
    for (int32_t f = 0; f < table.num_factors; ++f) {
      const size_t value = value_of(row, f);
      rows_[static_cast<size_t>(start_[value + 1]++)] = row;
      if (seen[value]) max_saved_ += table.lengths_of(row)[f];
      seen[value] = true;
    }
  }
}

int64_t regraft(PrefixTree& tree, const ValueIndex& index, uint64_t seed, int64_t& work, Workers& workers) {
  Regrafter(tree, index, seed, workers).run(work);
  return tree.saved();
}

int64_t regraft_around(PrefixTree& tree, const ValueIndex& index, std::vector<int32_t> nodes, uint64_t seed,
                       int64_t& work, Workers& workers) {
  Regrafter(tree, index, seed, workers).run_around(std::move(nodes), work);
  return tree.saved();
}

std::vector<int32_t> move_at_random(PrefixTree& tree, const ValueIndex& index, uint64_t seed, int64_t& work) {
  const PlanTable& table = tree.table();
  const int64_t num_moves = table.num_rows / table.limits.rows_per_random_move + 1;
  const int64_t num_inner = tree.num_nodes() - table.num_rows;
  work -= num_inner * table.num_factors + int64_t{tree.num_nodes()} * kFixedWork;  // for the tree's copy
  std::vector<int32_t> touched;
  for (int64_t i = 0; i < num_moves; ++i) {
    const auto row = static_cast<int32_t>(next_random(seed) % static_cast<uint64_t>(table.num_rows));
    const auto factor = static_cast<int32_t>(next_random(seed) % static_cast<uint64_t>(table.num_factors));
    const ValueIndex::Rows rows = index.rows_of(factor, table.codes_of(row)[factor]);
    const int32_t partner = rows.first[next_random(seed) % static_cast<uint64_t>(rows.size)];
    if (partner == row) continue;
    const int32_t beside = tree.next_sibling(row);
    tree.detach(row);
    if (beside >= 0) touch_around(tree, beside, touched);
    tree.attach(row, deepest_open_place(tree, row, partner));
    touch_around(tree, row, touched);
  }
  return touched;
}

}  // namespace vllm_relational
