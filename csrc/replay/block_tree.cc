#include "replay/block_tree.h"

#include <utility>

namespace vllm_relational {

BlockTree::BlockTree(const Limits& limits)
    : max_blocks_(limits.max_blocks), slots_(static_cast<size_t>(limits.first_slots), Slot{0, kRoot}), hashes_(1, 0),
      parents_(1, kRoot), depths_(1, 0) {}

void BlockTree::follow(std::span<const uint64_t> chain, size_t num_unchanged, std::vector<Node>& path) {
  const size_t mask = slots_.size() - 1;
  for (const uint64_t hash : chain.subspan(num_unchanged)) __builtin_prefetch(&slots_[hash & mask]);
  path.resize(num_unchanged);
  for (const uint64_t hash : chain.subspan(num_unchanged)) {
    path.push_back(find_or_insert(hash, path.empty() ? kRoot : path.back()));
  }
}

BlockTree::Node BlockTree::find_or_insert(uint64_t hash, Node parent) {
  const auto tag = static_cast<uint32_t>(hash);
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  for (; slots_[slot].node != kRoot; slot = (slot + 1) & mask) {
    if (slots_[slot].tag == tag && hashes_[slots_[slot].node] == hash) return slots_[slot].node;
  }
  check_max(static_cast<int64_t>(hashes_.size()), max_blocks_, "distinct blocks");
  const auto node = static_cast<Node>(hashes_.size());
  slots_[slot] = {tag, node};
  hashes_.push_back(hash);
  parents_.push_back(parent);
  depths_.push_back(depths_[parent] + 1);
  if (hashes_.size() * 5 > slots_.size() * 3) grow_table();
  return node;
}

void BlockTree::grow_table() {
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots_.size() * 2, Slot{0, kRoot}));
  const size_t mask = slots_.size() - 1;
  for (const Slot& entry : old) {
    if (entry.node == kRoot) continue;
    size_t slot = entry.tag & mask;
    while (slots_[slot].node != kRoot) slot = (slot + 1) & mask;
    slots_[slot] = entry;
  }
}

}  // namespace vllm_relational
