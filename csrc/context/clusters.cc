#include "context/clusters.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace vllm_relational::context {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// q . covariance . q of a head, over the trace.
float shared_spread(const float* covariance, const float* query, int32_t head_size) {
  float mapped[kMaxHeadSize] = {};  // covariance . q: rows are added, so that no sum waits for the one before
  double sum = 0, trace = 0;
  for (int32_t a = 0; a < head_size; ++a) {
    const float* const row = covariance + static_cast<ptrdiff_t>(a) * head_size;
    for (int32_t b = 0; b < head_size; ++b) mapped[b] += query[a] * row[b];
    trace += static_cast<double>(row[a]);
  }
  for (int32_t a = 0; a < head_size; ++a) sum += static_cast<double>(query[a]) * static_cast<double>(mapped[a]);
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
  Search(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries, OpenRule rule,
         std::vector<Find> found, SimdLevel level)
      : keys_(keys), clusters_(clusters), start_(start), stop_(stop), rule_(rule), loops_(kernels(level)),
        found_(std::move(found)), count_(static_cast<size_t>(clusters.size())), means_(found_.size() * count_),
        deviations_(found_.size() * count_), in_range_(count_), is_open_(count_) {
    for (int32_t head = 0; head < queries.num_heads; head += QueryBlock::kHeads) {
      const int32_t heads = std::min(queries.num_heads - head, QueryBlock::kHeads);
      blocks_.emplace_back(queries.data + static_cast<ptrdiff_t>(head) * keys.head_size, heads, keys.head_size);
    }
    cluster_products(clusters, keys.head_size, queries, level, means_.data(), deviations_.data());
    for (size_t j = 0; j < count_; ++j) in_range_[j] = keys_in_range(j);
  }

  Hits run() {
    take(clusters_.odd);
    look();
    open_sure();
    for (size_t h = 0; h < found_.size(); ++h) open_more(h);
    Hits hits;
    hits.offsets.push_back(0);
    hits.visited = visited_;
    for (Find& find : found_) find.finish(hits);
    return hits;
  }

 private:
  std::span<const int32_t> members(size_t cluster) const {
    const auto begin = static_cast<size_t>(clusters_.starts[cluster]);
    return clusters_.tokens.subspan(begin, static_cast<size_t>(clusters_.starts[cluster + 1]) - begin);
  }

  int64_t keys_in_range(size_t cluster) const {
    const std::span<const int32_t> own = members(cluster);
    if (own.front() >= start_ && own.back() < stop_) return static_cast<int64_t>(own.size());
    return std::count_if(own.begin(), own.end(), [this](int32_t token) { return token >= start_ && token < stop_; });
  }

  // How far the cluster's guess lies above the head's threshold; NaN where nothing can be said.
  float above(size_t head, size_t cluster, float deviations) const {
    const size_t at = head * count_ + cluster;
    return means_[at] + deviations * deviations_[at] - found_[head].threshold();
  }

  bool is_sure(size_t cluster) const {
    for (size_t h = 0; h < found_.size(); ++h) {
      if (!(above(h, cluster, rule_.sure) < 0)) return true;
    }
    return false;
  }

  // The most promising first, so that thresholds rise early.
  void open_sure() {
    std::vector<std::pair<float, size_t>> order;
    for (size_t j = 0; j < count_; ++j) {
      if (in_range_[j] == 0 || !is_sure(j)) continue;
      float most = -kInfinity;
      for (size_t h = 0; h < found_.size(); ++h) {
        const bool has_none = found_[h].threshold() == -kInfinity;
        const float own = has_none ? means_[h * count_ + j] + rule_.sure * deviations_[h * count_ + j] : above(h, j, rule_.sure);
        most = own <= most ? most : std::isnan(own) ? kInfinity : own;
      }
      order.emplace_back(-most, j);
    }
    std::sort(order.begin(), order.end());
    for (const auto& [below, cluster] : order) {
      if (is_sure(cluster)) open(cluster);
    }
    look();
  }

  // What the head needs beyond that, by how many deviations it would take.
  void open_more(size_t head) {
    const auto most = static_cast<int64_t>(static_cast<double>(rule_.share) * static_cast<double>(stop_ - start_));
    int64_t opened = 0;
    std::vector<std::pair<float, size_t>> order;
    for (size_t j = 0; j < count_; ++j) {
      if (!(above(head, j, rule_.sure) < 0)) opened += in_range_[j];
      else if (in_range_[j] > 0 && above(head, j, rule_.most) >= 0) {
        order.emplace_back(-above(head, j, 0) / deviations_[head * count_ + j], j);
      }
    }
    if (opened >= most) return;
    std::sort(order.begin(), order.end());
    for (const auto& [needed, cluster] : order) {
      if (opened >= most) break;
      opened += in_range_[cluster];
      open(cluster);
    }
    look();
  }

  void open(size_t cluster) {
    if (is_open_[cluster]) return;
    is_open_[cluster] = true;
    take(members(cluster));
    if (waiting_.size() >= kTile) look();
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
  OpenRule rule_;
  const Kernels& loops_;
  std::vector<Find> found_;
  size_t count_;
  std::vector<float> means_, deviations_;
  std::vector<int64_t> in_range_;
  std::vector<bool> is_open_;
  std::vector<QueryBlock> blocks_;
  std::vector<int32_t> waiting_;
  std::vector<int32_t> places_ = std::vector<int32_t>(kTile + 16);
  std::vector<float> scores_ = std::vector<float>(QueryBlock::kHeads * kTile);
  int64_t visited_ = 0;
};

}  // namespace

void cluster_products(const ClustersView& clusters, int32_t head_size, QueryHeads queries, SimdLevel level, float* means,
                      float* deviations) {
  const auto count = static_cast<size_t>(clusters.size());
  const auto rows_of = [&](const uint16_t* data) {
    return Rows{reinterpret_cast<const std::byte*>(data), clusters.size(), head_size, Number::kBf16};
  };
  const std::vector<float> squares = squares_of(queries, head_size);
  std::vector<float> variances((static_cast<size_t>(queries.num_heads) + 1) * count);
  scan_scores(rows_of(clusters.means), {0, nullptr, clusters.size()}, queries, level, means);
  scan_scores(rows_of(clusters.variances), {0, nullptr, clusters.size()}, {squares.data(), queries.num_heads + 1}, level, variances.data());
  const float* const sizes = variances.data() + static_cast<size_t>(queries.num_heads) * count;
  for (int32_t h = 0; h < queries.num_heads; ++h) {
    const float shared = shared_spread(clusters.covariance, queries.data + static_cast<ptrdiff_t>(h) * head_size, head_size);
    float* const own = deviations + static_cast<size_t>(h) * count;
    const float* const variance = variances.data() + static_cast<size_t>(h) * count;
    for (size_t j = 0; j < count; ++j) own[j] = std::sqrt((variance[j] + shared * sizes[j]) / 2);
  }
}

Hits clusters_dipr(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries,
                   float beta, const float* lower, OpenRule rule, SimdLevel level) {
  std::vector<WithinBeta> found;
  for (int32_t h = 0; h < queries.num_heads; ++h) found.emplace_back(beta, lower == nullptr ? -kInfinity : lower[h]);
  return Search<WithinBeta>(keys, clusters, start, stop, queries, rule, std::move(found), level).run();
}

Hits clusters_topk(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries,
                   int64_t k, OpenRule rule, SimdLevel level) {
  const auto most = static_cast<size_t>(std::min(k, stop - start));
  std::vector<Greatest> found(static_cast<size_t>(queries.num_heads), Greatest(most));
  return Search<Greatest>(keys, clusters, start, stop, queries, rule, std::move(found), level).run();
}

}  // namespace vllm_relational::context
