#include "context/graph.h"

#include <algorithm>

#include "check.h"
#include "random_keys.h"

using namespace vllm_relational::context;

namespace {

constexpr int32_t kLinks = 12;

GraphParts graph_of(const RandomKeys& keys, int32_t num_queries, SimdLevel level) {
  const std::vector<float> sampled = random_queries(num_queries, keys.rows.head_size, true);
  const Hits wanted = scan_topk(keys.rows, 0, keys.rows.count, {sampled.data(), num_queries}, 8, level);
  std::vector<int32_t> lists(static_cast<size_t>(num_queries) * 8, -1);
  for (size_t q = 0; q < static_cast<size_t>(num_queries); ++q) {
    const auto begin = static_cast<size_t>(wanted.offsets[q]), end = static_cast<size_t>(wanted.offsets[q + 1]);
    std::copy(wanted.tokens.begin() + static_cast<ptrdiff_t>(begin), wanted.tokens.begin() + static_cast<ptrdiff_t>(end),
              lists.begin() + static_cast<ptrdiff_t>(q * 8));
  }
  const ClusterParts clusters = build_clusters(keys.rows, {}, level);
  const ClustersView view{clusters.starts, clusters.tokens, clusters.odd, clusters.means.data(), clusters.variances.data(),
                          clusters.covariance.data()};
  return build_graph(keys.rows, lists, 8, view, kLinks, level);
}

void links_are_of_other_keys_and_distinct() {
  for (const int64_t count : {0, 1, 63, 900}) {
    const RandomKeys keys(count, 64, Number::kBf16, 3);
    const GraphParts parts = graph_of(keys, 40, best_level());
    CHECK(static_cast<int64_t>(parts.links.size()) == count * kLinks);
    CHECK(static_cast<int64_t>(parts.entries.size()) == std::min<int64_t>(count, 16));
    for (int64_t key = 0; key < count; ++key) {
      std::vector<int32_t> own(parts.links.begin() + key * kLinks, parts.links.begin() + (key + 1) * kLinks);
      own.erase(std::find(own.begin(), own.end(), -1), own.end());
      std::sort(own.begin(), own.end());
      CHECK(std::adjacent_find(own.begin(), own.end()) == own.end());
      CHECK(std::all_of(own.begin(), own.end(), [&](int32_t to) { return to >= 0 && to < count && to != key; }));
    }
  }
}

void searches_find_keys_of_the_set() {
  const RandomKeys keys(900, 64, Number::kBf16, 3);
  const std::vector<float> queries = random_queries(3, 64, true);
  for_each_level([&](SimdLevel level) {
    const GraphParts parts = graph_of(keys, 40, level);
    const GraphView view{parts.links.data(), kLinks, parts.entries};
    std::vector<float> lower;
    const Hits best = scan_topk(keys.rows, 0, 900, {queries.data(), 3}, 1, level);
    lower = best.scores;
    const Hits exact = scan_dipr(keys.rows, 100, 800, {queries.data(), 3}, 5.0F, lower.data(), level);
    for (const Hits& hits : {graph_dipr(keys.rows, view, 100, 800, {queries.data(), 3}, 5.0F, lower.data(), 900, level),
                             diprs(keys.rows, view, 100, 800, {queries.data(), 3}, 5.0F, lower.data(), 8, level)}) {
      CHECK(hits.visited <= 3 * 700 && hits.visited > 0);
      for (size_t h = 0; h < 3; ++h) {
        CHECK(std::includes(exact.tokens.begin() + exact.offsets[h], exact.tokens.begin() + exact.offsets[h + 1],
                            hits.tokens.begin() + hits.offsets[h], hits.tokens.begin() + hits.offsets[h + 1]));
      }
    }
    CHECK(graph_topk(keys.rows, view, 100, 800, {queries.data(), 3}, 2, 900, level).tokens.size() == 6);
  });
}

}  // namespace

int main() {
  links_are_of_other_keys_and_distinct();
  searches_find_keys_of_the_set();
}
