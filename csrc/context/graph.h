// Experimental: a graph over the keys, whose links join keys that the same queries want, and the searches in it.
#pragma once

#include "context/clusters.h"
#include "context/scan.h"

namespace vllm_relational::context {

struct GraphParts {
  std::vector<int32_t> links;    // [num_keys, num_links]: neighbours, -1 behind the last
  std::vector<int32_t> entries;  // where searches begin
};

// lists: [num_queries, list_size], the keys that sampled queries want most, the first first; -1 for none. Keys that
// stand in many lists together are linked (the projection of a graph between queries and keys, as RoarGraph's,
// arXiv 2408.08933, but by how often instead of by distance), and keys with the nearest of their cluster.
GraphParts build_graph(const Rows& keys, std::span<const int32_t> lists, int64_t list_size, const ClustersView& clusters,
                       int32_t num_links, SimdLevel level);

struct GraphView {
  const int32_t* links;
  int64_t num_links;
  std::span<const int32_t> entries;
};

// Best first: expands the key with the greatest score of all that were seen, at least `expansions` of them, and on
// while the greatest is within beta. Neighbours outside [start, stop) are not looked at, but theirs are (two hops).
// Heads search apart; `visited` is the sum.
Hits graph_dipr(const Rows& keys, const GraphView& graph, int64_t start, int64_t stop, QueryHeads queries, float beta,
                const float* lower, int64_t expansions, SimdLevel level);
Hits graph_topk(const Rows& keys, const GraphView& graph, int64_t start, int64_t stop, QueryHeads queries, int64_t k,
                int64_t expansions, SimdLevel level);

// DIPRS as AlayaDB publishes it (arXiv 2504.10326, algorithm 1), a reference: an unordered list that grows by every
// neighbour whose score is within beta of the greatest so far, or while the list is shorter than `list_size`.
Hits diprs(const Rows& keys, const GraphView& graph, int64_t start, int64_t stop, QueryHeads queries, float beta,
           const float* lower, int64_t list_size, SimdLevel level);

}  // namespace vllm_relational::context
