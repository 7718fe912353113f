// Keys in clusters of some 16, and a guess of the greatest product in each: only clusters that may hold a key within beta
// are looked at. Approximate: what is guessed is `spread` standard deviations above the product with the mean.
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

// Guesses of the greatest product in each cluster: out [num_heads, num_clusters]. The variance of products is taken as
// the mean of two estimates: with the channels of the cluster as if they were independent, and with the covariance that
// all clusters share, scaled to the cluster's own size.
void cluster_bounds(const ClustersView& clusters, int32_t head_size, QueryHeads queries, float spread, SimdLevel level,
                    float* out);

// Opens clusters by their guess, the highest above the threshold of some head first, until none reaches any head's
// threshold, which rises with what is found; all heads look at what one opens. `visited`: keys of opened clusters.
Hits clusters_dipr(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries,
                   float beta, const float* lower, float spread, SimdLevel level);
Hits clusters_topk(const Rows& keys, const ClustersView& clusters, int64_t start, int64_t stop, QueryHeads queries,
                   int64_t k, float spread, SimdLevel level);

}  // namespace vllm_relational::context
