#include "context/graph.h"

#include <algorithm>
#include <limits>
#include <queue>

namespace vllm_relational::context {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What one head's walk through the graph has seen.
class Walk {
 public:
  Walk(const Rows& keys, const GraphView& graph, int64_t start, int64_t stop, const float* query, const Kernels& loops)
      : keys_(keys), graph_(graph), start_(start), stop_(stop), loops_(loops), block_(query, 1, keys.head_size),
        seen_(static_cast<size_t>(keys.count)) {}

  // The entries; where none of them is in range, the first key of it.
  void enter() {
    fresh_.clear();
    for (const int32_t entry : graph_.entries) add(entry, true);
    if (fresh_.empty() && start_ < stop_) add(static_cast<int32_t>(start_), true);
    score();
  }

  void expand(int32_t token) {
    fresh_.clear();
    for_each_link(token, [&](int32_t neighbour) { add(neighbour, true); });
    score();
  }

  // What the last call looked at first, with its scores.
  const std::vector<int32_t>& fresh() const { return fresh_; }
  const float* scores() const { return scores_.data(); }
  int64_t visited() const { return visited_; }

  template <class Find>
  void report(Find& find, std::vector<int32_t>& places) const {
    for (size_t begin = 0; begin < fresh_.size(); begin += kTile) {
      const auto count = static_cast<int64_t>(std::min<size_t>(kTile, fresh_.size() - begin));
      find.add(loops_, scores_.data() + begin, {0, fresh_.data() + begin, count}, places);
    }
  }

 private:
  template <class Each>
  void for_each_link(int32_t token, Each each) const {
    const int32_t* const own = graph_.links + token * graph_.num_links;
    for (int64_t j = 0; j < graph_.num_links && own[j] >= 0; ++j) each(own[j]);
  }

  void add(int32_t token, bool may_hop) {
    if (seen_[static_cast<size_t>(token)]) return;
    seen_[static_cast<size_t>(token)] = true;
    if (token >= start_ && token < stop_) return fresh_.push_back(token);
    if (may_hop) for_each_link(token, [&](int32_t neighbour) { add(neighbour, false); });
    else seen_[static_cast<size_t>(token)] = false;  // another key may come by, one hop away
  }

  void score() {
    scores_.resize((fresh_.size() + kTile) / kTile * kTile);
    for (size_t begin = 0; begin < fresh_.size(); begin += kTile) {
      const auto count = static_cast<int64_t>(std::min<size_t>(kTile, fresh_.size() - begin));
      loops_.score(keys_, {0, fresh_.data() + begin, count}, block_, scores_.data() + begin);
    }
    visited_ += static_cast<int64_t>(fresh_.size());
  }

  const Rows& keys_;
  const GraphView& graph_;
  int64_t start_, stop_;
  const Kernels& loops_;
  QueryBlock block_;
  std::vector<bool> seen_;
  std::vector<int32_t> fresh_;
  std::vector<float> scores_;
  int64_t visited_ = 0;
};

template <class Find>
int64_t best_first(Walk& walk, Find& find, int64_t expansions) {
  std::vector<int32_t> places(kTile + 16);
  std::priority_queue<std::pair<float, int32_t>> ahead;
  const auto look = [&] {
    walk.report(find, places);
    for (size_t i = 0; i < walk.fresh().size(); ++i) {
      const float score = walk.scores()[i];
      ahead.emplace(score == score ? score : kInfinity, walk.fresh()[i]);  // NaN: a comparison with it would break the order
    }
  };
  walk.enter();
  look();
  for (int64_t done = 0; !ahead.empty() && (done < expansions || !(ahead.top().first < find.threshold())); ++done) {
    const int32_t token = ahead.top().second;
    ahead.pop();
    walk.expand(token);
    look();
  }
  return walk.visited();
}

int64_t as_published(Walk& walk, WithinBeta& find, size_t list_size) {
  std::vector<int32_t> places(kTile + 16), list;
  const auto look = [&] {
    for (size_t i = 0; i < walk.fresh().size(); ++i) {
      const float score = walk.scores()[i];
      if (list.size() < list_size || !(score < find.threshold())) list.push_back(walk.fresh()[i]);
      find.raise(score);
    }
    walk.report(find, places);
  };
  walk.enter();
  look();
  for (size_t next = 0; next < list.size(); ++next) {
    walk.expand(list[next]);
    look();
  }
  return walk.visited();
}

// Calls search(walk, head) for every head, which returns its finds' place.
template <class Search>
Hits for_each_head(const Rows& keys, const GraphView& graph, int64_t start, int64_t stop, QueryHeads queries,
                   SimdLevel level, Search search) {
  Hits hits;
  hits.offsets.push_back(0);
  for (int32_t h = 0; h < queries.num_heads; ++h) {
    Walk walk(keys, graph, start, stop, queries.data + static_cast<ptrdiff_t>(h) * keys.head_size, kernels(level));
    hits.visited += search(walk, h, hits);
  }
  return hits;
}

}  // namespace

Hits graph_dipr(const Rows& keys, const GraphView& graph, int64_t start, int64_t stop, QueryHeads queries, float beta,
                const float* lower, int64_t expansions, SimdLevel level) {
  return for_each_head(keys, graph, start, stop, queries, level, [&](Walk& walk, int32_t h, Hits& hits) {
    WithinBeta find(beta, lower == nullptr ? -kInfinity : lower[h]);
    const int64_t visited = best_first(walk, find, expansions);
    find.finish(hits);
    return visited;
  });
}

Hits graph_topk(const Rows& keys, const GraphView& graph, int64_t start, int64_t stop, QueryHeads queries, int64_t k,
                int64_t expansions, SimdLevel level) {
  return for_each_head(keys, graph, start, stop, queries, level, [&](Walk& walk, int32_t, Hits& hits) {
    Greatest find(static_cast<size_t>(std::min(k, stop - start)));
    const int64_t visited = best_first(walk, find, std::max(expansions, k));
    find.finish(hits);
    return visited;
  });
}

Hits diprs(const Rows& keys, const GraphView& graph, int64_t start, int64_t stop, QueryHeads queries, float beta,
           const float* lower, int64_t list_size, SimdLevel level) {
  return for_each_head(keys, graph, start, stop, queries, level, [&](Walk& walk, int32_t h, Hits& hits) {
    WithinBeta find(beta, lower == nullptr ? -kInfinity : lower[h]);
    const int64_t visited = as_published(walk, find, static_cast<size_t>(list_size));
    find.finish(hits);
    return visited;
  });
}

}  // namespace vllm_relational::context
