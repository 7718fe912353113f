#include "context/clusters.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace vllm_relational::context {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// q . covariance . q of a head, over the trace.
float shared_spread(const float* covariance, const float* query, int32_t head_size) {
  double sum = 0, trace = 0;
  for (int32_t a = 0; a < head_size; ++a) {
    const float* const row = covariance + static_cast<ptrdiff_t>(a) * head_size;
    float inner = 0;
    for (int32_t b = 0; b < head_size; ++b) inner += row[b] * query[b];
    sum += static_cast<double>(query[a]) * static_cast<double>(inner);
    trace += static_cast<double>(row[a]);
  }
  return trace > 0 ? static_cast<float>(std::max(sum, 0.0) / trace) : 0.0F;
}

// Squares in bfloat16, with one more head: all channels' sum, the size of a cluster.
std::vector<float> squares_of(QueryHeads queries, int32_t head_size) {
  const auto count = static_cast<size_t>(queries.num_heads) * static_cast<size_t>(head_size);
  std::vector<float> squares(count + static_cast<size_t>(head_size), 1.0F);
  for (size_t i = 0; i < count; ++i) {
    squares[i] = std::bit_cast<float>((std::bit_cast<uint32_t>(queries.data[i] * queries.data[i]) + 0x8000U) & 0xFFFF0000U);
  }
  return squares;
}

// The clusters, and the heads' finds, of one search. Find: WithinBeta or Greatest.
template <class Find>
class Search {
 public:
  Search(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries, float spread,
         std::vector<Find> found, SimdLevel level)
      : keys_(keys), clusters_(clusters), start_(start), stop_(stop), queries_(queries), loops_(kernels(level)),
        found_(std::move(found)), bounds_(static_cast<size_t>(clusters.size()) * static_cast<size_t>(queries.num_heads)) {
    for (int32_t head = 0; head < queries.num_heads; head += QueryBlock::kHeads) {
      const int32_t heads = std::min(queries.num_heads - head, QueryBlock::kHeads);
      blocks_.emplace_back(queries.data + static_cast<ptrdiff_t>(head) * keys.head_size, heads, keys.head_size);
    }
    cluster_bounds(clusters, keys.head_size, queries, spread, level, bounds_.data());
  }

  Hits run() {
    take(clusters_.odd);
    look();
    for (const auto& [above, cluster] : in_order()) {
      if (!is_wanted(cluster)) continue;
      take(members(cluster));
      if (waiting_.size() >= kTile) look();
    }
    look();
    Hits hits;
    hits.offsets.push_back(0);
    hits.visited = visited_;
    for (Find& find : found_) find.finish(hits);
    return hits;
  }

 private:
  std::span<const int32_t> members(int64_t cluster) const {
    const auto at = static_cast<size_t>(cluster);
    return clusters_.tokens.subspan(static_cast<size_t>(clusters_.starts[at]), static_cast<size_t>(clusters_.starts[at + 1] - clusters_.starts[at]));
  }

  // How far above the threshold of some head; NaN where nothing can be said.
  float above(int64_t cluster) const {
    float most = -kInfinity;
    for (size_t h = 0; h < found_.size(); ++h) {
      const float own = bounds_[h * static_cast<size_t>(clusters_.size()) + static_cast<size_t>(cluster)];
      const float threshold = found_[h].threshold();
      const float over = threshold == -kInfinity ? own : own - threshold;
      if (!(over <= most)) most = over;
    }
    return most;
  }

  bool is_wanted(int64_t cluster) const {
    for (size_t h = 0; h < found_.size(); ++h) {
      if (!(bounds_[h * static_cast<size_t>(clusters_.size()) + static_cast<size_t>(cluster)] < found_[h].threshold())) return true;
    }
    return false;
  }

  // Clusters that may hold what is looked for, the most promising first.
  std::vector<std::pair<float, int64_t>> in_order() const {
    std::vector<std::pair<float, int64_t>> order;
    for (int64_t cluster = 0; cluster < clusters_.size(); ++cluster) {
      const std::span<const int32_t> own = members(cluster);
      if (own.back() < start_ || own.front() >= stop_ || !is_wanted(cluster)) continue;
      const float over = above(cluster);
      order.emplace_back(std::isnan(over) ? kInfinity : over, cluster);
    }
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
    return order;
  }

  void take(std::span<const int32_t> tokens) {
    for (const int32_t token : tokens) {
      if (token >= start_ && token < stop_) waiting_.push_back(token);
    }
  }

  void look() {
    for (size_t begin = 0; begin < waiting_.size(); begin += kTile) {
      const RowSet tile{0, waiting_.data() + begin, static_cast<int64_t>(std::min<size_t>(kTile, waiting_.size() - begin))};
      size_t head = 0;
      for (const QueryBlock& block : blocks_) {
        loops_.score(keys_, tile, block, scores_.data());
        for (int32_t h = 0; h < block.num_heads; ++h) found_[head++].add(loops_, scores_.data() + h * kTile, tile, places_);
      }
    }
    visited_ += static_cast<int64_t>(waiting_.size());
    waiting_.clear();
  }

  const Rows& keys_;
  const ClustersView& clusters_;
  int64_t start_, stop_;
  QueryHeads queries_;
  const Kernels& loops_;
  std::vector<Find> found_;
  std::vector<float> bounds_;
  std::vector<QueryBlock> blocks_;
  std::vector<int32_t> waiting_;
  std::vector<int32_t> places_ = std::vector<int32_t>(kTile + 16);
  std::vector<float> scores_ = std::vector<float>(QueryBlock::kHeads * kTile);
  int64_t visited_ = 0;
};

}  // namespace

void cluster_bounds(const ClustersView& clusters, int32_t head_size, QueryHeads queries, float spread, SimdLevel level,
                    float* out) {
  const auto count = static_cast<size_t>(clusters.size());
  const auto rows_of = [&](const uint16_t* data) {
    return Rows{reinterpret_cast<const std::byte*>(data), clusters.size(), head_size, Number::kBf16};
  };
  const std::vector<float> squares = squares_of(queries, head_size);
  std::vector<float> variances((static_cast<size_t>(queries.num_heads) + 1) * count);
  scan_scores(rows_of(clusters.means), {0, nullptr, clusters.size()}, queries, level, out);
  scan_scores(rows_of(clusters.variances), {0, nullptr, clusters.size()}, {squares.data(), queries.num_heads + 1}, level, variances.data());
  const float* const sizes = variances.data() + static_cast<size_t>(queries.num_heads) * count;
  for (int32_t h = 0; h < queries.num_heads; ++h) {
    const float shared = shared_spread(clusters.covariance, queries.data + static_cast<ptrdiff_t>(h) * head_size, head_size);
    float* const own = out + static_cast<size_t>(h) * count;
    const float* const variance = variances.data() + static_cast<size_t>(h) * count;
    for (size_t j = 0; j < count; ++j) own[j] += spread * std::sqrt((variance[j] + shared * sizes[j]) / 2);
  }
}

Hits clusters_dipr(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries,
                   float beta, const float* lower, float spread, SimdLevel level) {
  std::vector<WithinBeta> found;
  for (int32_t h = 0; h < queries.num_heads; ++h) found.emplace_back(beta, lower == nullptr ? -kInfinity : lower[h]);
  return Search<WithinBeta>(keys, clusters, start, stop, queries, spread, std::move(found), level).run();
}

Hits clusters_topk(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries,
                   int64_t k, float spread, SimdLevel level) {
  const auto most = static_cast<size_t>(std::min(k, stop - start));
  std::vector<Greatest> found(static_cast<size_t>(queries.num_heads), Greatest(most));
  return Search<Greatest>(keys, clusters, start, stop, queries, spread, std::move(found), level).run();
}

}  // namespace vllm_relational::context
