#include "context/clusters.h"

#include <algorithm>
#include <cmath>

#include "check.h"
#include "random_keys.h"

using namespace vllm_relational::context;

namespace {

ClustersView view_of(const ClusterParts& parts) {
  return {parts.starts, parts.tokens, parts.odd, parts.means.data(), parts.variances.data(), parts.covariance.data()};
}

void every_key_is_in_one_cluster() {
  for_each_level([](SimdLevel level) {
    for (const Number number : {Number::kBf16, Number::kF16, Number::kF32}) {
      for (const int64_t count : {0, 1, 63, 400}) {
        const RandomKeys keys(count, 80, number, 3);
        const ClusterParts parts = build_clusters(keys.rows, {16, 300, 4}, level);
        std::vector<int32_t> tokens = parts.tokens;
        std::sort(tokens.begin(), tokens.end());
        CHECK(static_cast<int64_t>(tokens.size()) == count && parts.odd.empty());
        for (size_t i = 0; i < tokens.size(); ++i) CHECK(tokens[i] == static_cast<int32_t>(i));
        CHECK(parts.starts.back() == count && std::is_sorted(parts.starts.begin(), parts.starts.end()));
        CHECK(parts.means.size() == (parts.starts.size() - 1) * 80 && parts.variances.size() == parts.means.size());
      }
    }
  });
}

void a_great_spread_opens_all_and_a_small_one_few() {
  const RandomKeys keys(1500, 64, Number::kBf16, 3);
  const std::vector<float> queries = random_queries(9, 64, true);
  for_each_level([&](SimdLevel level) {
    const ClusterParts parts = build_clusters(keys.rows, {}, level);
    const Hits exact = scan_dipr(keys.rows, 0, 1500, {queries.data(), 9}, 4.0F, nullptr, level);
    const Hits all = clusters_dipr(keys.rows, view_of(parts), 0, 1500, {queries.data(), 9}, 4.0F, nullptr, {1e6F, 1e6F, 0}, level);
    CHECK(all.tokens == exact.tokens && all.offsets == exact.offsets);
    const Hits few = clusters_dipr(keys.rows, view_of(parts), 0, 1500, {queries.data(), 1}, 4.0F, nullptr, {2.0F, 3.5F, 0.15F}, level);
    CHECK(few.visited < 500 && 10 * static_cast<int64_t>(few.tokens.size()) >= 9 * exact.offsets[1]);
    const Hits best = clusters_topk(keys.rows, view_of(parts), 100, 1400, {queries.data(), 9}, 5, {1e6F, 1e6F, 0}, level);
    CHECK(best.tokens == scan_topk(keys.rows, 100, 1400, {queries.data(), 9}, 5, level).tokens);
  });
}

void what_is_not_finite_is_always_looked_at() {
  RandomKeys keys(500, 32, Number::kF32, 3);
  const float nan = std::nanf("");
  std::memcpy(keys.bytes.data() + 7 * 32 * 4, &nan, 4);
  const std::vector<float> queries = random_queries(2, 32, false);
  const ClusterParts parts = build_clusters(keys.rows, {}, best_level());
  CHECK(parts.odd == std::vector<int32_t>{7} && parts.tokens.size() == 499);
  const std::vector<float> lower(2, 1e9F);
  const Hits hits = clusters_dipr(keys.rows, view_of(parts), 0, 500, {queries.data(), 2}, 1.0F, lower.data(), {2.0F, 3.5F, 0.15F}, best_level());
  CHECK((hits.tokens == std::vector<int32_t>{7, 7}) && hits.visited == 1);
}

}  // namespace

int main() {
  every_key_is_in_one_cluster();
  a_great_spread_opens_all_and_a_small_one_few();
  what_is_not_finite_is_always_looked_at();
}
