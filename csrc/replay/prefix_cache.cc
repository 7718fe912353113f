#include "replay/prefix_cache.h"

#include <limits>

#include "replay/block_chains.h"
#include "replay/replay_policies.h"

namespace vllm_relational {
// ------------------------------------------------------------------------------------------------------- cache
PrefixCache::PrefixCache(int64_t capacity_blocks, const Limits& limits)
    : capacity_(capacity_blocks == 0 ? std::numeric_limits<int64_t>::max() : capacity_blocks),
      max_blocks_(limits.max_blocks),
      slot_mask_(static_cast<size_t>(limits.first_slots) - 1),
      slots_(slot_mask_ + 1, Slot{0, 0}),
      nodes_(1, Node{0, 0, 0}) {}

int64_t PrefixCache::admit(std::span<const uint64_t> chain, size_t num_unchanged) {
  for (const uint64_t hash : chain.subspan(num_unchanged)) __builtin_prefetch(&slots_[hash & slot_mask_]);
  // The unchanged blocks head the list already, in this order: the request before put them there.
  path_.resize(num_unchanged);
  Index above = path_.empty() ? 0 : path_.back();
  size_t hits = num_unchanged;
  for (size_t i = num_unchanged; i < chain.size(); ++i) {
    const auto [node, was_cached] = find_or_insert(chain[i]);
    if (was_cached && hits == i) ++hits;
    link_below(node, above);
    path_.push_back(node);
    above = node;
  }
  evict_over_capacity();
  return static_cast<int64_t>(hits);
}

std::pair<PrefixCache::Index, bool> PrefixCache::find_or_insert(uint64_t hash) {
  const size_t slot = find_slot(hash);
  if (slots_[slot].node != 0) {
    unlink(slots_[slot].node);
    return {slots_[slot].node, true};
  }
  check_max(size_ + 1, max_blocks_, "blocks in the cache");
  const Index node = new_node(hash);
  slots_[slot] = {static_cast<uint32_t>(hash), node};
  ++size_;
  if (static_cast<size_t>(size_) * 5 > slots_.size() * 3) grow_table();
  return {node, false};
}

// The new node is linked to itself, so that it can be unlinked like any other.
PrefixCache::Index PrefixCache::new_node(uint64_t hash) {
  if (recycled_.empty()) {
    recycled_.push_back(static_cast<Index>(nodes_.size()));
    nodes_.emplace_back();
  }
  const Index node = recycled_.back();
  recycled_.pop_back();
  nodes_[node] = {hash, node, node};
  return node;
}

// The slot that holds `hash`, or the empty slot where it belongs.
size_t PrefixCache::find_slot(uint64_t hash) const {
  const auto tag = static_cast<uint32_t>(hash);
  size_t slot = hash & slot_mask_;
  while (slots_[slot].node != 0 && (slots_[slot].tag != tag || nodes_[slots_[slot].node].hash != hash)) {
    slot = (slot + 1) & slot_mask_;
  }
  return slot;
}

// Closes the gap by moving later entries back, so that no probe meets a false end and no tombstones pile up.
void PrefixCache::erase_from_table(Index node) {
  size_t gap = find_slot(nodes_[node].hash);
  for (size_t probe = (gap + 1) & slot_mask_; slots_[probe].node != 0; probe = (probe + 1) & slot_mask_) {
    const size_t from_home = (probe - slots_[probe].tag) & slot_mask_;
    const size_t from_gap = (probe - gap) & slot_mask_;
    if (from_home < from_gap) continue;  // its home lies behind the gap: it may not move before its home
    slots_[gap] = slots_[probe];
    gap = probe;
  }
  slots_[gap] = {0, 0};
}

void PrefixCache::grow_table() {
  std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots_.size() * 2, Slot{0, 0}));
  slot_mask_ = slots_.size() - 1;
  for (const Slot& entry : old) {
    if (entry.node == 0) continue;
    size_t slot = entry.tag & slot_mask_;
    while (slots_[slot].node != 0) slot = (slot + 1) & slot_mask_;
    slots_[slot] = entry;
  }
}

// The request's own blocks head the list and are at most `capacity_`, so only blocks of other requests go.
void PrefixCache::evict_over_capacity() {
  for (; size_ > capacity_; --size_) {
    const Index oldest = nodes_[0].newer;
    erase_from_table(oldest);
    unlink(oldest);
    recycled_.push_back(oldest);
  }
}

void PrefixCache::unlink(Index node) {
  const auto [hash, newer, older] = nodes_[node];
  nodes_[newer].older = older;
  nodes_[older].newer = newer;
  nodes_[node].newer = nodes_[node].older = node;
}

// Puts an unlinked node right after `newer` (0: at the head). Two blocks of one request can only be the same node when
// their hashes collide; the list must stay whole even then.
void PrefixCache::link_below(Index node, Index newer) {
  if (node == newer) newer = 0;
  const Index older = nodes_[newer].older;
  nodes_[node] = {nodes_[node].hash, newer, older};
  nodes_[newer].older = node;
  nodes_[older].newer = node;
}

// ------------------------------------------------------------------------------------------------------ replay
namespace {

ReplayResult replay_lru(BlockChains& chains, size_t num_requests, int64_t capacity_blocks, const Limits& limits) {
  PrefixCache cache(capacity_blocks, limits);
  ReplayResult result;
  result.hit_tokens.reserve(num_requests);
  result.prompt_tokens.reserve(num_requests);
  for (size_t asked = 0; asked < num_requests; ++asked) {
    const size_t num_unchanged = chains.load(asked);
    const int64_t cached = cache.admit(chains.chain(), num_unchanged);
    result.hit_tokens.push_back(chains.hit_tokens(cached, chains.prompt_tokens()));
    result.prompt_tokens.push_back(chains.prompt_tokens());
  }
  return result;
}

}  // namespace

ReplayResult simulate_prefix_cache(const PlannedBatch& batch, int64_t block_size, int64_t capacity_blocks,
                                   EvictionPolicy policy) {
  const bool unlimited = capacity_blocks == 0;
  const auto max_blocks = unlimited ? std::numeric_limits<size_t>::max() : static_cast<size_t>(capacity_blocks);
  BlockChains chains(batch, block_size, max_blocks);
  const size_t num_requests = batch.rows.size();
  if (unlimited) return replay_lru(chains, num_requests, 0, batch.limits);  // nothing is evicted: one policy is like another
  switch (policy) {
    case EvictionPolicy::kFifo: return replay_fifo(chains, num_requests, capacity_blocks, batch.limits);
    case EvictionPolicy::kBelady: return replay_belady(chains, num_requests, capacity_blocks, batch.limits);
    case EvictionPolicy::kLru: break;
  }
  return replay_lru(chains, num_requests, capacity_blocks, batch.limits);
}

}  // namespace vllm_relational
