// FIFO and Belady against rules that read as they are said, on paths that meet and part at all depths.
#include "replay/replay_policies.h"

#include <algorithm>
#include <limits>
#include <map>
#include <random>

#include "check.h"

using namespace vllm_relational;

namespace {

using Path = std::vector<int32_t>;  // the first blocks of a prompt name its last block
using Counts = std::vector<int32_t>;

// Requests of up to four columns of few values, each cell one block of two tokens; the token after them fills no block.
struct Batch {
  static constexpr size_t kColumns = 4, kValues = 3;
  std::vector<int32_t> tokens{0, 0, 1, 1, 2, 2}, tail{9}, codes, fields;
  std::vector<int64_t> offsets{0, 2, 4, 6}, rows;
  size_t num_columns;

  Batch(size_t num_requests, std::mt19937& random) : num_columns(1 + random() % kColumns) {
    for (size_t i = 0; i < num_columns * num_requests; ++i) codes.push_back(static_cast<int32_t>(random() % kValues));
    for (size_t i = 0; i < num_requests; ++i) rows.push_back(static_cast<int64_t>(i));
    for (size_t c = 0; c < num_columns; ++c) fields.push_back(static_cast<int32_t>(c));
  }

  Counts hits(int64_t capacity, EvictionPolicy policy) const {
    const std::vector<CellSegments> cells(num_columns, CellSegments{tokens, offsets});
    const PlannedBatch batch{{}, cells, tail, codes.data(), static_cast<int64_t>(rows.size()), rows,
                             fields.data(), 0, 1};
    Counts blocks = simulate_prefix_cache(batch, 2, capacity, policy).hit_tokens;
    for (int32_t& tokens_served : blocks) tokens_served /= 2;
    return blocks;
  }

  // The blocks of a request, root first, cut to the capacity.
  std::vector<Path> blocks(size_t request, int64_t capacity) const {
    std::vector<Path> result;
    Path path;
    for (size_t c = 0; c < num_columns && static_cast<int64_t>(c) < capacity; ++c) {
      path.push_back(codes[c * rows.size() + request]);
      result.push_back(path);
    }
    return result;
  }
};

// Whether the cache holds a block that continues this one.
bool has_child(const std::map<Path, size_t>& cache, const Path& block) {
  return std::any_of(cache.begin(), cache.end(), [&](const auto& entry) {
    return entry.first.size() == block.size() + 1 && std::equal(block.begin(), block.end(), entry.first.begin());
  });
}

// The hits of a cache that, once a request is served, drops leaves of others: by the greatest `rank(block, request)`.
template <typename Rank>
Counts replay_naively(const Batch& batch, int64_t capacity, const Rank& rank) {
  std::map<Path, size_t> cache;  // the request that inserted each block
  Counts hits;
  for (size_t request = 0; request < batch.rows.size(); ++request) {
    const std::vector<Path> own = batch.blocks(request, capacity);
    int32_t found = 0;
    while (static_cast<size_t>(found) < own.size() && cache.contains(own[static_cast<size_t>(found)])) ++found;
    hits.push_back(found);
    for (const Path& block : own) cache.emplace(block, request);
    while (static_cast<int64_t>(cache.size()) > capacity) {
      auto victim = cache.end();
      for (auto entry = cache.begin(); entry != cache.end(); ++entry) {
        if (has_child(cache, entry->first) || std::find(own.begin(), own.end(), entry->first) != own.end()) continue;
        if (victim == cache.end() || rank(*entry, request) > rank(*victim, request)) victim = entry;
      }
      CHECK(victim != cache.end());
      cache.erase(victim);
    }
  }
  return hits;
}

void fifo_drops_what_came_first(const Batch& batch, int64_t capacity) {
  // Of the blocks that one request inserted the deepest first.
  const auto oldest = [](const auto& entry, size_t) {
    return std::pair(-static_cast<int64_t>(entry.second), entry.first.size());
  };
  CHECK(batch.hits(capacity, EvictionPolicy::kFifo) == replay_naively(batch, capacity, oldest));
}

void belady_drops_what_is_used_last(const Batch& batch, int64_t capacity) {
  const auto farthest = [&](const auto& entry, size_t request) {
    size_t next = request + 1;
    while (next < batch.rows.size()) {
      const std::vector<Path> blocks = batch.blocks(next, capacity);
      if (std::find(blocks.begin(), blocks.end(), entry.first) != blocks.end()) break;
      ++next;
    }
    return std::pair(next, entry.first.size());
  };
  CHECK(batch.hits(capacity, EvictionPolicy::kBelady) == replay_naively(batch, capacity, farthest));
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int i = 0; i < 120; ++i) {
    const Batch batch(1 + random() % 30, random);
    const auto capacity = static_cast<int64_t>(1 + random() % 12);
    fifo_drops_what_came_first(batch, capacity);
    belady_drops_what_is_used_last(batch, capacity);
  }
  return 0;
}
