// Replays under other policies than least recently used.
//
// Common rules: a request holds all its blocks until it ends; only then blocks of others go, as many as are too many.
// A block never goes before its children in the cache (vllm_relational/kv/policy.py says why), so what the cache holds
// of a prompt is always the prompt's first blocks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "replay/block_chains.h"
#include "replay/prefix_cache.h"

namespace vllm_relational {

// Oldest insertion first. Needs capacity_blocks >= 1, as many as the chains' max_blocks. Time: O(log) a block that
// comes or goes.
ReplayResult replay_fifo(BlockChains& chains, size_t num_requests, int64_t capacity_blocks, const Limits& limits);

// Farthest next use first; reads the batch twice. Needs the same. Time: O(1) for each block that differs from those of
// the request before, O(log) for each pair of requests that share blocks next. Memory: 30 bytes a distinct block, at
// most 8 bytes more a block that differs.
ReplayResult replay_belady(BlockChains& chains, size_t num_requests, int64_t capacity_blocks, const Limits& limits);

}  // namespace vllm_relational
