#include "context/scan.h"

#include <algorithm>

namespace vllm_relational::context {

namespace {

// Calls each(tile of rows, scores at [h * kTile + i], first head) for every tile and every block of query heads.
template <class Each>
void for_each_tile(const Rows& keys, RowSet which, QueryHeads queries, const Kernels& loops, Each each) {
  std::vector<float> scores(QueryBlock::kHeads * kTile);
  for (int32_t head = 0; head < queries.num_heads; head += QueryBlock::kHeads) {
    const int32_t heads = std::min(queries.num_heads - head, QueryBlock::kHeads);
    const QueryBlock block(queries.data + static_cast<ptrdiff_t>(head) * keys.head_size, heads, keys.head_size);
    for (int64_t begin = 0; begin < which.count; begin += kTile) {
      const RowSet tile = which.part(begin, std::min<int64_t>(kTile, which.count - begin));
      loops.score(keys, tile, block, scores.data());
      each(tile, begin, scores.data(), head, heads);
    }
  }
}

template <class Head>
Hits search(const Rows& keys, RowSet which, QueryHeads queries, const Kernels& loops, std::vector<Head> found) {
  std::vector<int32_t> places(kTile + 16);
  for_each_tile(keys, which, queries, loops,
                [&](const RowSet& tile, int64_t, const float* scores, int32_t head, int32_t heads) {
                  for (int32_t h = 0; h < heads; ++h) {
                    found[static_cast<size_t>(head + h)].add(loops, scores + h * kTile, tile, places);
                  }
                });
  Hits hits;
  hits.offsets.push_back(0);
  hits.visited = which.count;
  for (Head& head : found) head.finish(hits);
  return hits;
}

Hits dipr(const Rows& keys, RowSet which, QueryHeads queries, float beta, const float* lower, SimdLevel level) {
  std::vector<WithinBeta> found;
  for (int32_t h = 0; h < queries.num_heads; ++h) {
    found.emplace_back(beta, lower == nullptr ? -std::numeric_limits<float>::infinity() : lower[h]);
  }
  return search(keys, which, queries, kernels(level), std::move(found));
}

Hits topk(const Rows& keys, RowSet which, QueryHeads queries, int64_t k, SimdLevel level) {
  const auto most = static_cast<size_t>(std::min(k, which.count));
  std::vector<Greatest> found(static_cast<size_t>(queries.num_heads), Greatest(most));
  return search(keys, which, queries, kernels(level), std::move(found));
}

}  // namespace

Hits scan_dipr(const Rows& keys, int64_t start, int64_t stop, QueryHeads queries, float beta, const float* lower,
               SimdLevel level) {
  return dipr(keys, {start, nullptr, stop - start}, queries, beta, lower, level);
}

Hits scan_topk(const Rows& keys, int64_t start, int64_t stop, QueryHeads queries, int64_t k, SimdLevel level) {
  return topk(keys, {start, nullptr, stop - start}, queries, k, level);
}

Hits scan_listed_dipr(const Rows& keys, std::span<const int32_t> tokens, QueryHeads queries, float beta,
                      const float* lower, SimdLevel level) {
  return dipr(keys, {0, tokens.data(), static_cast<int64_t>(tokens.size())}, queries, beta, lower, level);
}

Hits scan_listed_topk(const Rows& keys, std::span<const int32_t> tokens, QueryHeads queries, int64_t k,
                      SimdLevel level) {
  return topk(keys, {0, tokens.data(), static_cast<int64_t>(tokens.size())}, queries, k, level);
}

void scan_scores(const Rows& keys, RowSet which, QueryHeads queries, SimdLevel level, float* out) {
  for_each_tile(keys, which, queries, kernels(level),
                [&](const RowSet& tile, int64_t begin, const float* scores, int32_t head, int32_t heads) {
                  for (int32_t h = 0; h < heads; ++h) {
                    std::copy_n(scores + h * kTile, tile.count, out + (head + h) * which.count + begin);
                  }
                });
}

}  // namespace vllm_relational::context
