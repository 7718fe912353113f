// Keys in clusters of some 16, and of each the mean and the standard deviation of its scores: only clusters that may
// hold a key within beta are looked at. Approximate: how many deviations above its mean a cluster's greatest score lies
// is a guess.
#pragma once

#include "context/scan.h"

namespace vllm_relational::context {

struct ClusterSettings {
  int32_t cluster_size = 16;   // keys per cluster, on average
  int32_t segment = 8192;      // keys that are clustered by themselves: neighbours in the context, so that building takes
                               // time in proportion to the keys (RetroInfer, arXiv 2505.02922, segments likewise)
  int32_t rounds = 8;          // of Lloyd's algorithm
};

// Clusters of consecutive segments, one after the other. Keys that hold what is not finite are in no cluster.
struct ClusterParts {
  std::vector<int32_t> starts;      // [num_clusters + 1], into tokens
  std::vector<int32_t> tokens;      // ascending in each cluster
  std::vector<uint16_t> means;      // bfloat16 [num_clusters, head_size]
  std::vector<uint16_t> variances;  // bfloat16 [num_clusters, head_size], of the channels about the mean
  std::vector<float> covariance;    // [head_size, head_size]: of all keys about the means of their clusters
  std::vector<int32_t> odd;         // keys with what is not finite, ascending: always looked at
};

ClusterParts build_clusters(const Rows& keys, const ClusterSettings& settings, SimdLevel level);

// The parts as they lie in memory; the same lengths as there.
struct ClustersView {
  std::span<const int32_t> starts, tokens, odd;
  const uint16_t* means;
  const uint16_t* variances;
  const float* covariance;

  int64_t size() const { return static_cast<int64_t>(starts.size()) - 1; }
};

// Scores with the mean and their standard deviation: both [num_heads, num_clusters]. Their variance is taken as the mean
// of two estimates: with the channels of the cluster as if they were independent, and with the covariance that all
// clusters share, scaled to the cluster's own size.
void cluster_products(const ClustersView& clusters, int32_t head_size, QueryHeads queries, SimdLevel level, float* means,
                      float* deviations);

// Which clusters a head opens, by how many deviations above its mean one would have to reach the head's threshold: all
// that need up to `sure`, and then by what they need, up to `most`, while the head has opened less than `share` of the
// keys in range. A head whose set is small finds it in the tails of clusters, and can afford to look at many.
struct OpenRule {
  float sure, most, share;
};

// Thresholds rise with what is found; all heads look at what one opens. `visited`: keys of opened clusters.
Hits clusters_dipr(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries,
                   float beta, const float* lower, OpenRule rule, SimdLevel level);
Hits clusters_topk(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries,
                   int64_t k, OpenRule rule, SimdLevel level);

}  // namespace vllm_relational::context
