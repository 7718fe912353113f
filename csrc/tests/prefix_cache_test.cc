#include "replay/prefix_cache.h"

#include <algorithm>
#include <list>
#include <numeric>
#include <random>

#include "check.h"

using namespace vllm_relational;

namespace {

using Chain = std::vector<uint64_t>;
using Counts = std::vector<int32_t>;

void deepest_block_goes_first() {
  PrefixCache cache(4);
  CHECK(cache.admit(Chain{1, 2, 3}, 0) == 0);
  CHECK(cache.admit(Chain{1, 2, 3}, 3) == 3);
  CHECK(cache.admit(Chain{7, 8}, 0) == 0);  // room for two: 3 goes
  CHECK(cache.size() == 4);
  CHECK(cache.admit(Chain{1, 2}, 0) == 2);
  CHECK(cache.admit(Chain{1, 2, 3}, 2) == 2);  // 3 comes back, 8 goes
  CHECK(cache.admit(Chain{7, 8}, 0) == 1);
}

// The same rules on a plain list: front is most recent.
int64_t admit_naively(std::list<uint64_t>& blocks, const Chain& chain, size_t capacity) {
  size_t hits = 0;
  while (hits < chain.size() && std::find(blocks.begin(), blocks.end(), chain[hits]) != blocks.end()) ++hits;
  for (const uint64_t hash : chain) blocks.remove(hash);
  blocks.insert(blocks.begin(), chain.begin(), chain.end());
  if (blocks.size() > capacity) blocks.resize(capacity);
  return static_cast<int64_t>(hits);
}

// Paths in a binary tree, so that requests branch at every depth. The hashes' low bits are kept poor on purpose:
// long probe runs in the table exercise its deletion.
void random_chains(size_t capacity, std::mt19937& random) {
  PrefixCache cache(static_cast<int64_t>(capacity));
  std::list<uint64_t> blocks;
  Chain before;
  for (int request = 0; request < 2000; ++request) {
    Chain chain;
    const size_t length = random() % (std::min<size_t>(capacity, 12) + 1);
    for (uint64_t node = 1; chain.size() < length;) {
      node = node * 2 + random() % 2;
      chain.push_back(node << 10 | (node & 1));
    }
    const auto same = std::mismatch(chain.begin(), chain.end(), before.begin(), before.end());
    const auto num_unchanged = static_cast<size_t>(same.first - chain.begin());
    CHECK(cache.admit(chain, num_unchanged) == admit_naively(blocks, chain, capacity));
    CHECK(cache.size() == static_cast<int64_t>(blocks.size()));
    before = chain;
  }
}

void colliding_hashes_keep_the_list_whole() {
  PrefixCache cache(3);
  for (int request = 0; request < 20; ++request) {
    cache.admit(Chain{5, 5, 5}, 0);
    cache.admit(Chain{5, 6, 5}, 0);
    cache.admit(Chain{8, 9, 10}, 0);
    CHECK(cache.size() == 3);
  }
}

// header 1 2 3, cells {4 | 5 6} and {7 8 | 9}, tail 10; two rows, four requests.
struct SmallBatch {
  std::vector<int32_t> header{1, 2, 3};
  std::vector<int32_t> first_tokens{4, 5, 6};
  std::vector<int64_t> first_offsets{0, 1, 3};
  std::vector<int32_t> second_tokens{7, 8, 9};
  std::vector<int64_t> second_offsets{0, 2, 3};
  std::vector<int32_t> tail{10};
  std::vector<int32_t> codes{0, 1, /* second column */ 0, 1};
  std::vector<int64_t> rows{0, 1, 1, 0};
  std::vector<int32_t> fields{0, 1};

  PlannedBatch view() const {
    return {header, {{first_tokens, first_offsets}, {second_tokens, second_offsets}}, tail, codes.data(), 2, rows,
            fields.data(), 0, 1};
  }
};

void small_batch() {
  const SmallBatch batch;
  // 1 2 3 4 7 8 10 and 1 2 3 5 6 9 10
  const ReplayResult by_two = simulate_prefix_cache(batch.view(), 2, 0);
  CHECK(by_two.prompt_tokens == (Counts{7, 7, 7, 7}));
  CHECK(by_two.hit_tokens == (Counts{0, 2, 6, 6}));
  const ReplayResult by_one = simulate_prefix_cache(batch.view(), 1, 0);
  CHECK(by_one.hit_tokens == (Counts{0, 3, 6, 6}));  // the seventh token is always recomputed
  const ReplayResult one_block = simulate_prefix_cache(batch.view(), 2, 1);
  CHECK(one_block.hit_tokens == (Counts{0, 2, 2, 2}));
}

void no_columns() {
  SmallBatch batch;
  PlannedBatch view = batch.view();
  view.columns.clear();
  const ReplayResult result = simulate_prefix_cache(view, 2, 0);
  CHECK(result.prompt_tokens == (Counts{4, 4, 4, 4}));
  CHECK(result.hit_tokens == (Counts{0, 2, 2, 2}));
}

// Prompts of one block of two tokens and one token more, asked as `rows` says; hits in blocks.
Counts single_block_hits(std::vector<int64_t> rows, int64_t capacity_blocks, EvictionPolicy policy) {
  const std::vector<int32_t> tokens{1, 1, 2, 2, 3, 3}, tail{9}, codes{0, 1, 2}, fields{0};
  const std::vector<int64_t> offsets{0, 2, 4, 6};
  const PlannedBatch batch{{}, {{tokens, offsets}}, tail, codes.data(), 3, rows, fields.data(), 0, 1};
  Counts hits = simulate_prefix_cache(batch, 2, capacity_blocks, policy).hit_tokens;
  for (int32_t& tokens_served : hits) tokens_served /= 2;
  return hits;
}

void policies_differ() {
  const std::vector<int64_t> rows{0, 1, 0, 2, 0, 1, 2};
  CHECK(single_block_hits(rows, 2, EvictionPolicy::kLru) == (Counts{0, 0, 1, 0, 1, 0, 0}));
  CHECK(single_block_hits(rows, 2, EvictionPolicy::kFifo) == (Counts{0, 0, 1, 0, 0, 0, 0}));
  CHECK(single_block_hits(rows, 2, EvictionPolicy::kBelady) == (Counts{0, 0, 1, 0, 1, 0, 1}));
  for (const auto policy : {EvictionPolicy::kLru, EvictionPolicy::kFifo, EvictionPolicy::kBelady}) {
    CHECK(single_block_hits(rows, 3, policy) == (Counts{0, 0, 1, 0, 1, 1, 1}));
    CHECK(single_block_hits({}, 1, policy).empty());
  }
}

int64_t sum(const Counts& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

// Columns of few values, whole blocks long, in an order of its own for each row: paths meet and part at all depths.
void belady_serves_most(std::mt19937& random) {
  constexpr size_t kColumns = 4, kRows = 300;
  std::vector<int32_t> tokens, codes, fields;
  for (int32_t code = 0; code < 3; ++code) tokens.insert(tokens.end(), {code, code, code + 1, code});
  const std::vector<int64_t> offsets{0, 4, 8, 12};
  const std::vector<int32_t> tail{9};
  for (size_t i = 0; i < kColumns * kRows; ++i) codes.push_back(static_cast<int32_t>(random() % 3));
  std::vector<int64_t> rows;
  std::vector<int32_t> order{0, 1, 2, 3};
  for (size_t i = 0; i < kRows; ++i) {
    rows.push_back(static_cast<int64_t>(random() % kRows));
    std::swap(order[random() % kColumns], order[random() % kColumns]);
    fields.insert(fields.end(), order.begin(), order.end());
  }
  const CellSegments cells{tokens, offsets};
  const PlannedBatch batch{{}, {cells, cells, cells, cells}, tail, codes.data(), kRows, rows, fields.data(), 4, 1};
  for (int64_t capacity = 1; capacity < 200; ++capacity) {
    const auto served = [&](EvictionPolicy policy) {
      return sum(simulate_prefix_cache(batch, 2, capacity, policy).hit_tokens);
    };
    CHECK(served(EvictionPolicy::kBelady) >= served(EvictionPolicy::kLru));
    CHECK(served(EvictionPolicy::kBelady) >= served(EvictionPolicy::kFifo));
  }
}

}  // namespace

int main() {
  deepest_block_goes_first();
  std::mt19937 random(1);
  for (const size_t capacity : {1, 2, 5, 13, 100, 3000}) random_chains(capacity, random);
  colliding_hashes_keep_the_list_whole();
  small_batch();
  no_columns();
  policies_differ();
  belady_serves_most(random);
  return 0;
}
