// Replays a planned batch against a prefix cache of KV blocks: as vLLM 0.32 keeps it, or under another policy.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "replay/planned_batch.h"

namespace vllm_relational {

// Least-recently-used set of KV blocks, named by the hash chain of their tokens.
//
// Two different blocks with one 64-bit hash would be taken for the same. Among n distinct blocks the odds of any such
// pair are about n^2 / 2^65: one in 92,000 for 20 million blocks. The hash is not meant to withstand an attacker.
class PrefixCache {
 public:
  // capacity_blocks: 0 means without limit.
  explicit PrefixCache(int64_t capacity_blocks, const Limits& limits = {});

  // Serves one request. `chain` holds the hashes of its full blocks, root first, at most capacity_blocks of them; its
  // first `num_unchanged` hashes are those of the request before. Returns how many leading blocks were cached.
  // Afterwards all blocks of the chain are cached and most recent, the deepest the least recent among them, and the
  // least recent blocks of other requests are gone as far as the capacity asks.
  int64_t admit(std::span<const uint64_t> chain, size_t num_unchanged);

  int64_t size() const { return size_; }

 private:
  using Index = uint32_t;  // into nodes_

  struct Node {
    uint64_t hash;
    Index newer;
    Index older;
  };

  // `tag` is the low half of the hash: it gives the home slot when the table moves, and spares most look-ups of
  // nodes that share a slot by chance. `node` is 0 in an empty slot.
  struct Slot {
    uint32_t tag;
    Index node;
  };

  std::pair<Index, bool> find_or_insert(uint64_t hash);
  Index new_node(uint64_t hash);
  size_t find_slot(uint64_t hash) const;
  void erase_from_table(Index node);
  void grow_table();
  void evict_over_capacity();
  void unlink(Index node);
  void link_below(Index node, Index newer);

  int64_t capacity_;
  int64_t max_blocks_;
  int64_t size_ = 0;
  size_t slot_mask_;
  std::vector<Slot> slots_;      // open addressing, linear probing, a power of two of slots
  std::vector<Node> nodes_;      // nodes_[0] closes the list: its `older` is the most recent, its `newer` the least
  std::vector<Index> recycled_;  // nodes of evicted blocks, free for reuse
  std::vector<Index> path_;      // the nodes of the request before, root first
};

// Which block goes when the cache is full. The sort keys and their reasons are in vllm_relational/kv/policy.py.
enum class EvictionPolicy { kLru, kFifo, kBelady };

// Per request, in the order asked: tokens served from the cache, and tokens of the prompt.
struct ReplayResult {
  std::vector<int32_t> hit_tokens;
  std::vector<int32_t> prompt_tokens;
};

// The prompt of a row is header + its cells in planned order + tail, cut in blocks of `block_size` tokens. A request
// reuses its leading cached blocks, though at most (prompt_len - 1) / block_size of them, because vLLM always
// recomputes one token or more; then all its full blocks are cached. Of a prompt larger than the cache the first
// capacity_blocks blocks stay. Needs block_size >= 1, capacity_blocks >= 0 (0: without limit), fewer than 2^32 - 1
// requests. Throws std::length_error for more distinct blocks at a time than limits.max_blocks.
ReplayResult simulate_prefix_cache(const PlannedBatch& batch, int64_t block_size, int64_t capacity_blocks,
                                   EvictionPolicy policy = EvictionPolicy::kLru);

}  // namespace vllm_relational
